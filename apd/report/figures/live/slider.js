// Frames of one figure, of which a slider shows one. Where no script runs, all stand below one another.
(root => {
  if (!root || root.dataset.live) return;
  root.dataset.live = "slider";
  const frames = [...root.querySelectorAll(".apd-frame")];
  const range = root.querySelector("input"), said = root.querySelector(".apd-range span");

  function show() {
    frames.forEach((frame, index) => frame.classList.toggle("apd-off", index !== Number(range.value)));
    said.textContent = frames[range.value].querySelector(".apd-frame-name").textContent;
    range.setAttribute("aria-valuetext", said.textContent);
  }

  range.addEventListener("input", show);
  show();
})(document.getElementById("NAME"));
