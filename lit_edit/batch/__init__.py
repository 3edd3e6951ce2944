"""One batch on its way into the weights: numbers checked, changes rejected, state taken back, each request accounted for."""
