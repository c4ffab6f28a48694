// On paper what is folded is open and the page is light; afterwards all is as it was.
(() => {
  const root = document.documentElement;
  let opened = [], theme;
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("article details:not([open])")];
    opened.forEach(one => { one.open = true; });
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    opened.forEach(one => { one.open = false; });
    root.dataset.theme = theme;
  });
})();
