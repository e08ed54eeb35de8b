const buttons = [...document.querySelectorAll("button[data-paper]")];
for (const button of buttons) button.addEventListener("click", () => {
  for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  for (const part of document.querySelectorAll("section[data-paper], tr[data-paper]"))
    part.hidden = button.dataset.paper !== "" && part.dataset.paper !== button.dataset.paper;
});
