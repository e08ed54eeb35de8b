"""The networks. Each is a `Classifier`: features, then one linear head."""
