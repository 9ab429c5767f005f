"use strict";
// Keys press buttons, a form is sent only once, and it is not sent before all of each answer was on
// the screen. The page also works without this script: then nothing is folded, and places and the
// like are chosen from lists.

const form = document.getElementById("answer");
const told = document.getElementById("told");
let sent = false;

for (const each of document.forms) {
  each.addEventListener("submit", (event) => {
    look();
    const why = each === form && event.submitter ? refusal(event.submitter.value) : "";
    if (why) tell(event.submitter.value);
    if (sent || why) event.preventDefault();
    else sent = true;
  });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, select, input[type=text], input[type=file]");
  if (event.key === "Escape" && typing) event.target.blur();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) {
    document.querySelector('[data-key="enter"]')?.click();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || sent || typing) return;
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const key = CSS.escape(event.key.toLowerCase());
  const target = document.querySelector(`[data-key="${key}"]`);
  if (target && !target.disabled && !target.hidden) {
    event.preventDefault();
    if (target.matches("textarea")) target.focus();
    else target.click();
  }
});

// A page restored from the browser's memory holds an old form.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// What was asked for and could not be done: its reason is kept up to date until it can.
let waiting = "";

function tell(action) {
  waiting = action;
  if (told) told.textContent = action && refusal(action);
}

// What has been on the screen. Of each answer it is a list of stretches, from 0 (its first line) to
// 1 (its last one). A wide table counts once it was scrolled to its end.

const answers = [...document.querySelectorAll("article")].map((article, index) => ({
  name: index + 1,
  article,
  text: article.querySelector(".answer"),
  more: article.querySelector(".more"),
  unread: article.querySelector(".unread"),
  stretches: [],
  seen: false,
}));
let enough = false;

function join(stretches) {
  const joined = [];
  for (const [from, to] of stretches.sort((a, b) => a[0] - b[0])) {
    const last = joined.at(-1);
    if (last && from <= last[1] + 0.001) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

// A shade shows that a table goes on to the right.
function hasCutTable(answer) {
  let cut = false;
  for (const table of answer.text.querySelectorAll(".wide")) {
    const more = table.scrollLeft + table.clientWidth < table.scrollWidth - 2;
    if (!more && table.clientWidth) table.dataset.seen = "yes";
    table.classList.toggle("cut", more);
    cut ||= table.clientWidth > 0 && !table.dataset.seen;
  }
  return cut;
}

function look() {
  if (!form) return;
  const bottom = told.textContent ? Math.min(innerHeight, told.getBoundingClientRect().top) : innerHeight;
  for (const answer of answers) {
    if (!answer.seen) {
      const box = answer.text.getBoundingClientRect();
      const from = Math.max(0, -box.top), to = Math.min(box.height, bottom - box.top);
      if (to > from) answer.stretches.push([from / box.height, to / box.height]);
      answer.stretches = join(answer.stretches);
      const whole = answer.stretches.length === 1
        && answer.stretches[0][0] * box.height < 4 && (1 - answer.stretches[0][1]) * box.height < 4;
      const cut = hasCutTable(answer);
      answer.seen = answer.more.hidden && (whole || answer.article.dataset.opened) && !cut;
    }
    answer.unread.textContent = answer.seen || enough ? "" : "not all seen yet";
  }
  const all = answers.every((answer) => answer.seen);
  form.elements.seen.value = all ? "all" : enough ? "enough" : "";
  document.getElementById("enough").hidden = all || enough;
  if (waiting) tell(waiting);
}

document.addEventListener("scroll", look, { capture: true, passive: true });
addEventListener("resize", look);

function fold() {
  for (const answer of answers) {
    const limit = 0.6 * innerHeight;
    if (answer.article.dataset.opened || answer.text.scrollHeight < 1.15 * limit) continue;
    answer.text.classList.add("folded");
    answer.more.hidden = false;
  }
}

function open(answer) {
  answer.text.classList.remove("folded");
  answer.more.hidden = true;
  answer.article.dataset.opened = "yes";
  look();
}

// Why an answer cannot be sent yet; empty if it can.
function refusal(action) {
  const judges = action === "save" || action === "tie" || action === "bad" || action.startsWith("pick");
  if (judges && !form.elements.seen.value) {
    const names = answers.filter((answer) => !answer.seen).map((answer) => answer.name);
    return `You have not seen all of ${names.join(", ")} yet. Scroll through it, press M to go on to `
      + "the next part, or press N if you have seen enough.";
  }
  if (action !== "save") return "";
  if (form.dataset.order === "best" && chosen.length < 1) return "Choose the best one first.";
  if (form.dataset.order === "best_and_worst" && (chosen.length < 2 || chosen[0] === null)) {
    return "Choose the best one and the worst one first.";
  }
  if (form.dataset.order === "ranking" && chosen.length < answers.length) {
    return "Put all of them in order first.";
  }
  const strength = form.elements.strength;
  if (strength && !strength.value) return "Say first how much better the best one is (J, K or L).";
  return "";
}

// What was chosen: positions on the page, the best first. The lists of places hold the same, and
// are what is sent. Of the best and the worst, null stands for a best one that was taken out.

let chosen = [];
let followed = null;
const most = { best: 1, best_and_worst: 2, ranking: answers.length }[form?.dataset.order];

function choose(position) {
  // Who presses all numbers also presses that of the last one, which is there already.
  if (position === followed) followed = null;
  else if (chosen.includes(position)) chosen = without(position);
  else if (chosen.includes(null)) chosen = [position, chosen[1]];
  else if (chosen.length < most) chosen = [...chosen, position];
  else chosen = [...chosen.slice(0, -1), position];
  show();
}

// The order without one of its positions. In a ranking the next ones move up. The worst one does not
// become the best one, but it goes, too, if it only followed.
function without(position) {
  const worst = form.dataset.order === "best_and_worst" && chosen[0] === position ? chosen[1] : undefined;
  if (worst !== undefined) return worst === followed ? [] : [null, worst];
  const others = chosen.filter((other) => other !== position);
  return others[0] === null && others.length === 1 ? [] : others;
}

function show() {
  const count = answers.length;

  // The last one of a ranking, and the worst of two, follow by themselves.
  if (chosen.length === count - 1 && most === count && count > 1 && chosen.length > shown.length) {
    followed = [...answers.keys()].find((position) => !chosen.includes(position));
    chosen = [...chosen, followed];
  }
  if (chosen.at(-1) !== followed) followed = null;
  shown = chosen;

  answers.forEach((answer, position) => {
    const at = chosen.indexOf(position);
    const last = most > 1 && at === most - 1;
    form.elements[`place ${position}`].value = at < 0 ? "" : last ? count : at + 1;
    const words = at < 0 ? "" : at === 0 ? "best" : last ? "worst" : `place ${at + 1}`;
    answer.article.querySelector(".place").textContent = words;
    answer.article.classList.toggle("chosen", at === 0);
    answer.article.classList.toggle("named", at > 0);
    answer.article.querySelector(".choose").setAttribute("aria-pressed", String(at >= 0));
  });
  if (form.dataset.order === "ranking") {
    for (const position of chosen) placed.append(chipOf(position));
    answers.forEach((_, position) => { if (!chosen.includes(position)) loose.append(chipOf(position)); });
  }
  tell("");
}

let shown = [];
const placed = document.getElementById("placed"), loose = document.getElementById("loose");
const chipOf = (position) => document.querySelector(`[data-position="${position}"]`).parentElement;

// Chips are dragged with a mouse, a pen or a finger, and moved by the arrow keys. While a chip is
// dragged it stays where it is in the page, and a mark shows where it will go.

function placeAt(event, item) {
  if (event.clientY > placed.getBoundingClientRect().bottom + 10) return -1;  // out of the order
  const others = [...placed.children].filter((other) => other !== item);
  const after = others.findIndex((other) => {
    const box = other.getBoundingClientRect();
    return event.clientY < box.bottom && event.clientX < box.left + box.width / 2;
  });
  return after < 0 ? others.length : after;
}

function mark(item, to) {
  for (const other of placed.children) other.classList.remove("next");
  placed.classList.remove("end");
  if (to < 0) return;
  const next = [...placed.children].filter((other) => other !== item)[to];
  (next ?? placed).classList.add(next ? "next" : "end");
}

for (const chip of document.querySelectorAll(".chip")) {
  const position = Number(chip.dataset.position);
  const item = chip.parentElement;
  let from = null, dragged = false;

  const end = () => {
    from = null;
    dragged = false;
    item.style.transform = "";
    item.classList.remove("dragged");
    mark(item, -1);
  };
  chip.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = event;
    chip.setPointerCapture(event.pointerId);
  });
  chip.addEventListener("pointermove", (event) => {
    if (!from) return;
    const x = event.clientX - from.clientX, y = event.clientY - from.clientY;
    dragged ||= Math.hypot(x, y) > 4;
    if (!dragged) return;
    item.classList.add("dragged");
    item.style.transform = `translate(${x}px, ${y}px)`;
    mark(item, placeAt(event, item));
  });
  chip.addEventListener("pointerup", (event) => {
    if (!from) return;
    if (dragged) {
      const to = placeAt(event, item);
      const others = chosen.filter((other) => other !== position);
      chosen = to < 0 ? others : others.toSpliced(to, 0, position);
    }
    if (dragged) show();
    else choose(position);
    end();
    chip.blur();
  });
  chip.addEventListener("pointercancel", end);
  chip.addEventListener("click", (event) => { if (event.detail === 0) choose(position); });  // a key
  chip.addEventListener("keydown", (event) => {
    const at = chosen.indexOf(position), to = at + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? NaN);
    if (at < 0 || !(to >= 0 && to < chosen.length)) return;
    event.preventDefault();
    chosen = chosen.toSpliced(at, 1).toSpliced(to, 0, position);
    show();
    chip.focus();
  });
}

// The rest of the buttons.

if (form) {
  document.documentElement.classList.add("script");
  for (const element of document.querySelectorAll(".choose, .ranks")) element.hidden = false;
  answers.forEach((answer, position) => {
    answer.more.addEventListener("click", () => open(answer));
    answer.article.querySelector(".choose")?.addEventListener("click", (event) => {
      choose(position);
      if (event.detail) event.currentTarget.blur();  // so that Enter saves, and does not choose again
    });
  });
  document.getElementById("enough").addEventListener("click", (event) => {
    enough = true;
    event.currentTarget.blur();
    look();
  });

  // M goes on to what was not seen yet: it opens the first folded answer, scrolls a table to the
  // right, or brings an answer on the screen.
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "m" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("textarea, select, input[type=text]")) return;
    const answer = answers.find((each) => !each.more.hidden) ?? answers.find((each) => !each.seen);
    if (!answer) return;
    const table = answer.text.querySelector(".cut");
    if (!answer.more.hidden) open(answer);
    else if (table) table.scrollBy({ left: 0.9 * table.clientWidth });
    answer.article.scrollIntoView({ block: "start" });
    look();
  });

  document.getElementById("raw")?.addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("item").classList.toggle("raw-shown");
    for (const answer of answers) if (!answer.seen) answer.stretches = [];  // another text, as it were
    fold();
    look();
  });

  // An edit begins with the answer that was chosen.
  const edited = form.elements.edited;
  edited?.addEventListener("focus", () => {
    if (edited.value || !answers[chosen[0]]) return;
    edited.value = rawText(answers[chosen[0]].text);
    edited.rows = 10;
  });

  // An answer that was taken back stands in the lists.
  const placeOf = (position) => Number(form.elements[`place ${position}`]?.value ?? 0);
  chosen = [...answers.keys()].filter((position) => placeOf(position) > 0)
    .sort((a, b) => placeOf(a) - placeOf(b));
  if (form.dataset.order === "best_and_worst" && chosen.length === 1 && placeOf(chosen[0]) !== 1) {
    chosen = [null, ...chosen];
  }
  shown = chosen;
  if (chosen.length) show();

  form.noValidate = true;  // a list that is not shown could not say what is missing
  fold();
  look();
}

// An answer's own text. Characters that were written out are left out, but for those that join
// letters and emoji: in a field they could not be seen.
function rawText(answer) {
  const copy = (answer.querySelector(".raw") ?? answer).cloneNode(true);
  for (const hidden of copy.querySelectorAll(".hidden-character")) {
    const joiners = hidden.textContent.match(/\\u200[cd]/g) ?? [];
    hidden.textContent = joiners.map((code) => (code.endsWith("c") ? "\u200c" : "\u200d")).join("");
  }
  return copy.textContent;
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".code").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  // without https there is no clipboard, so the code is marked for Ctrl+C
      getSelection().selectAllChildren(code);
      button.textContent = "Press Ctrl+C";
    }
    button.blur();
  });
}
