// Views of one image: the cell under the pointer is framed in all of them, and what each view calls it is shown.
(root => {
  if (!root || root.dataset.live) return;
  root.dataset.live = "cells";
  const said = root.querySelector(".apd-said");
  const { width, height, names, views } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const images = [...root.querySelectorAll(".apd-pictures img")];
  const frames = images.map(() => {
    const frame = document.createElement("div");
    frame.className = "apd-cell";
    frame.hidden = true;
    return root.appendChild(frame);
  });
  let at = null;

  function show(cell) {
    at = cell;
    const outer = root.getBoundingClientRect();
    frames.forEach((frame, index) => {
      frame.hidden = !cell;
      if (!cell) return;
      const box = images[index].getBoundingClientRect(), wide = box.width / width, high = box.height / height;
      frame.style.left = box.left - outer.left + cell[0] * wide + "px";
      frame.style.top = box.top - outer.top + cell[1] * high + "px";
      frame.style.width = wide + "px";
      frame.style.height = high + "px";
    });
    said.textContent = cell ? [`row ${cell[1] + 1}, column ${cell[0] + 1}`, ...views.map(reading)].join("\n") : "";
  }

  function reading({ name, labels, scores }) {
    const place = at[1] * width + at[0], label = labels[place];
    if (label < 0) return `${name}: ignored`;
    return `${name}: ${names[label]}` + (scores ? ` ${scores[place]} %` : "");
  }

  function cellAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const clip = (share, cells) => Math.max(0, Math.min(cells - 1, Math.floor(share * cells)));
    return [clip((event.clientX - box.left) / box.width, width), clip((event.clientY - box.top) / box.height, height)];
  }

  for (const image of images) {
    image.addEventListener("pointermove", event => show(cellAt(event)));
    image.addEventListener("pointerdown", event => show(cellAt(event)));
    image.addEventListener("pointerleave", event => event.pointerType === "mouse" && show(null));
  }
  root.addEventListener("blur", () => show(null));
  root.addEventListener("keydown", event => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") show(null);
    if (!step) return;
    event.preventDefault();
    const middle = [width >> 1, height >> 1];
    show(at ? [(at[0] + step[0] + width) % width, (at[1] + step[1] + height) % height] : middle);
  });
})(document.getElementById("NAME"));
