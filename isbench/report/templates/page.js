for (const panel of document.querySelectorAll("section.curves")) {
  const plots = [...panel.querySelectorAll(".plotly-graph-div")];
  const axes = [...panel.querySelectorAll(".switch button")];
  const arms = [...panel.querySelectorAll(".arms button")];
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";

  function show() {
    const axis = axes.find(isPressed);
    const shown = new Set(arms.filter(isPressed).map((button) => button.dataset.arm));
    for (const plot of plots) {
      const visible = plot.data.map((trace) => trace.meta.axis === axis.dataset.axis && shown.has(trace.meta.arm));
      Plotly.update(plot, { visible }, { "xaxis.title.text": axis.dataset.title, "xaxis.autorange": true });
    }
  }

  for (const button of axes) button.addEventListener("click", () => {
    for (const other of axes) other.setAttribute("aria-pressed", other === button);
    show();
  });
  for (const button of arms) button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", !isPressed(button));
    show();
  });
}
