/* A slider says its value in words ("2,048 tokens"), not its position: what stands in its <output>. */
new MutationObserver(function () {
  document.querySelectorAll("output[for]").forEach(function (said) {
    var slider = document.getElementById(said.getAttribute("for"));
    if (slider && slider.getAttribute("aria-valuetext") !== said.textContent) {
      slider.setAttribute("aria-valuetext", said.textContent);
    }
  });
}).observe(document.documentElement, { childList: true, subtree: true, characterData: true });
