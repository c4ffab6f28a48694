// A figure whose marks tell what they are: the nearest one to the pointer, or the next one by arrow keys.
(root => {
  if (!root || root.dataset.live) return;
  root.dataset.live = "marks";
  const svg = root.querySelector("svg"), tip = root.querySelector(".apd-tip");
  const { marks, lines } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const space = "http://www.w3.org/2000/svg";
  const rings = svg.appendChild(document.createElementNS(space, "g"));
  const reach = 26; // pixels: a thumb finds a small mark
  let at = -1;

  function ring([x, y], radius) {
    const circle = document.createElementNS(space, "circle");
    const look = { cx: x, cy: y, r: radius, fill: "none", stroke: "currentColor", "stroke-width": 1.6 };
    for (const [name, value] of Object.entries(look)) circle.setAttribute(name, value);
    rings.append(circle);
  }

  function show(index) {
    if (index === at) return;
    at = index;
    rings.replaceChildren();
    tip.hidden = index < 0;
    if (index < 0) return;
    const mark = marks[index], [x, y, said, group] = mark;
    for (const other of marks) if (group && other !== mark && other[3] === group) ring(other, 4.2);
    ring(mark, 6);
    tip.textContent = said.map(line => lines[line]).join("\n");
    const matrix = svg.getScreenCTM(), box = root.getBoundingClientRect();
    const left = matrix.a * x + matrix.e - box.left, top = matrix.d * y + matrix.f - box.top;
    const above = top - tip.offsetHeight - 14;
    tip.style.left = Math.max(0, Math.min(left - tip.offsetWidth / 2, box.width - tip.offsetWidth)) + "px";
    tip.style.top = (above < 0 ? top + 14 : above) + "px";
  }

  function nearest(event) {
    const matrix = svg.getScreenCTM();
    let best = -1, least = reach ** 2;
    marks.forEach(([x, y], index) => {
      const far = (matrix.a * x + matrix.e - event.clientX) ** 2 + (matrix.d * y + matrix.f - event.clientY) ** 2;
      if (far < least) [best, least] = [index, far];
    });
    return best;
  }

  svg.addEventListener("pointermove", event => show(nearest(event)));
  svg.addEventListener("pointerdown", event => show(nearest(event)));
  svg.addEventListener("pointerleave", event => event.pointerType === "mouse" && show(-1));
  root.addEventListener("blur", () => show(-1));
  root.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step) return;
    event.preventDefault();
    show(at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length);
  });
})(document.getElementById("NAME"));
