"use strict";
// Each figure of a page is JSON in a box. It is drawn when the box comes into view (a folded one when it is opened),
// in the theme of the page, and follows both the theme and the width of its box.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const drawn = [];
  let library;

  const loaded = () => library ??= new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), {src: here+"plotly.min.js", onload: done, onerror: failed});
    document.head.append(script);
  });

  const system = matchMedia("(prefers-color-scheme: dark)");
  const template = () => {
    const theme = document.body.dataset.theme;
    return TEMPLATES[theme === "dark" || theme !== "light" && system.matches ? "dark" : "light"];
  };

  // Panels side by side keep a legible width on a phone: their box scrolls.
  const width = layout => {
    const axes = Object.keys(layout).filter(k => k.startsWith("xaxis")).map(k => layout[k]);
    const panels = new Set(axes.map(a => (a.domain ?? [0])[0])).size;
    return panels < 2 ? 0 : panels*(axes.every(a => a.visible === false) ? 60 : 230);
  };

  async function draw(box) {
    const {data, layout, frames} = JSON.parse(box.querySelector("script").textContent);
    const div = box.appendChild(document.createElement("div"));
    div.style.minWidth = width(layout)+"px";
    delete layout.width;      // the box decides
    await loaded();
    await Plotly.newPlot(div, {data, frames, layout: {...layout, template: template()}, config: {displaylogo: false}});
    drawn.push(div);
    new ResizeObserver(() => div.clientWidth && Plotly.Plots.resize(div)).observe(box);
    box.dataset.drawn = "";
  }

  const seen = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries) if (isIntersecting) { seen.unobserve(target); draw(target); }
  }, {rootMargin: "300px"});
  document.querySelectorAll("div.figure").forEach(box => seen.observe(box));

  const follow = () => drawn.forEach(div => Plotly.relayout(div, {template: template()}));
  new MutationObserver(follow).observe(document.body, {attributeFilter: ["data-theme"]});
  system.addEventListener("change", follow);
})();
