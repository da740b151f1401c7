// Draws every chart of the page as SVG. The expressions in specifications are interpreted, not
// compiled, so that the page's policy can forbid eval; the loader refuses every address.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("specs").textContent);
  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    config: page.config,
    actions: false,
    ast: true,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
    loader: { load: refuse, sanitize: refuse, http: refuse, file: refuse },
  };
  const draw = ([key, spec]) => {
    const element = document.getElementById(`chart-${key}`);
    return vegaEmbed(element, spec, options).catch((error) => {
      element.textContent = `This chart could not be drawn (${error.message}); its figures are in the table below.`;
      console.error(error);
    });
  };
  Promise.all(Object.entries(page.specs).map(draw)).then(() => {
    document.documentElement.dataset.charts = "done";
  });
})();
