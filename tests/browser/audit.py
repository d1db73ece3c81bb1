"""What a reader would stumble over: poor contrast, controls without a name, controls that are cut off."""

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

# What is cut off, covered, or scrolls sideways: [what is wrong, where]. Of what scrolls up and down, each
# control is brought into view first. An ellipsis is a choice, while enough is left to tell one from the next.
CUT = """
() => {
  const found = [];
  const name = (one) =>
    one.getAttribute("aria-label") ?? (one.textContent.trim().slice(0, 40) || one.outerHTML.slice(0, 60));
  const wide = (one) => one.scrollWidth > one.clientWidth;
  if (document.documentElement.scrollWidth > innerWidth) found.push(["the page scrolls sideways", ""]);
  for (const one of document.querySelectorAll("body *:not(.output)")) {
    if (!one.checkVisibility() || !wide(one)) continue;
    if (/auto|scroll/.test(getComputedStyle(one).overflowX)) found.push(["scrolls sideways", one.className]);
  }
  const layer = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
  for (const one of layer.querySelectorAll("a, button, input, .badge, .took, .count, #link-words")) {
    if (!one.checkVisibility({ visibilityProperty: true }) || one.matches(".skip")) continue;
    const box = one.getBoundingClientRect();
    if (box.width === 0) continue;
    const style = getComputedStyle(one);
    const wrong = (what) => found.push([what, name(one)]);
    if (box.left < -0.5 || box.right > innerWidth + 0.5) wrong("outside of the window");
    for (let around = one.parentElement; around; around = around.parentElement) {
      const edge = around.getBoundingClientRect();
      if (getComputedStyle(around).overflowX === "visible") continue;
      if (box.left < edge.left - 0.5 || box.right > edge.right + 0.5) wrong("cut off");
    }
    if (style.textOverflow === "ellipsis") {
      if (wide(one) && one.clientWidth < 110) wrong("too little of it is left");
    } else if (style.display !== "inline" && !one.matches("input") && one.scrollWidth > one.clientWidth + 1) {
      wrong("its words do not fit");
    }
    if (one.matches(".badge, .took, .count") && box.height > 30) wrong("broken into lines");
    if (!one.matches("a, button, input")) continue;
    one.scrollIntoView({ block: "nearest" });
    const { x, y, width, height } = one.getBoundingClientRect();
    if (!one.contains(document.elementFromPoint(x + width / 2, y + height / 2))) wrong("covered");
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


def poor(page):
    """Texts with too little contrast, and how much they have."""
    return [
        (text, round(ratio, 2))
        for text, colour, ground, large in page.evaluate(CONTRAST)
        if (ratio := contrast_of(colour, ground)) < (3 if large else 4.5)
    ]
