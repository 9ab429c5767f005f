"use strict";
// A button that copies the text of another element. Without this script the text is selected by hand.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const text = document.getElementById(button.dataset.copy);
  const status = button.nextElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    // The clipboard is there only by https and on this machine; elsewhere the text is selected.
    try {
      await navigator.clipboard.writeText(text.textContent);
      status.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(text);
      status.textContent = "selected: press Ctrl-C to copy";
    }
  });
}
