"use strict";
// Keys press buttons, and a form is sent only once. The page also works without this script.
let sent = false;
for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || sent) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const key = CSS.escape(event.key.toLowerCase());
  const target = document.querySelector(`[data-key="${key}"]`);
  if (target && !target.disabled) {
    event.preventDefault();
    target.click();
  }
});
// A page restored from the browser's memory holds an old form.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
