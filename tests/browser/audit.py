"""What a reader with other eyes, or none, would stumble over: poor contrast, controls without a name."""

# Visible controls that have no accessible name.
NAMELESS = """
() => [...document.querySelectorAll("a, button, input, [role=region], nav, dialog, table")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }))
  .filter((one) => {
    const name = one.getAttribute("aria-label")
      ?? document.getElementById(one.getAttribute("aria-labelledby"))?.textContent
      ?? one.labels?.[0]?.textContent ?? one.caption?.textContent ?? one.textContent;
    return name.trim() === "";
  })
  .map((one) => one.outerHTML.slice(0, 120))
"""

# For every visible text: [text, its colour, the ground under it, whether it is large]; colours as [r, g, b].
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      layers.push(rgba(getComputedStyle(one).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (text === "" || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest(".sr, .skip, script, noscript")) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const size = parseFloat(style.fontSize);
    const colour = over(rgba(style.color), below);
    found.push([text.slice(0, 40), colour, below, size >= 24 || (size >= 18.66 && style.fontWeight >= 700)]);
  }
  return found;
}
"""


def luminance(colour):
    """WCAG 2.1's relative luminance of [r, g, b], 0 to 255 each."""
    parts = [part / 255 for part in colour]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast_of(colour, ground):
    """WCAG 2.1's contrast ratio, 1 to 21."""
    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
