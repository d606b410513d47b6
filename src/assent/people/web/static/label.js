"use strict";
/* The pages work without this: it adds keys, drafts that survive a lost connection, and marks. */
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const form = one("#work");
  const kind = form ? form.dataset.kind : "";
  const made = (tag, text = "", type = "") => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (type) element.className = type;
    return element;
  };
  const typing = (target) => target.matches("textarea, select, input:not([type=radio], [type=checkbox], [type=hidden])");

  // ---- what is said to the annotator

  const status = one("#status");
  const say = (text, type = "bad", button = null) => {
    if (!status) return;
    status.className = `status notice ${type}`;
    status.replaceChildren(...(text ? [document.createTextNode(text + " ")] : []));
    if (button) status.append(button);
  };
  const live = made("p", "", "unseen");
  live.setAttribute("aria-live", "polite");
  document.body.append(live);
  const tell = (text) => { live.textContent = text; };

  // ---- drafts: what is written stays in this browser until it is saved

  const place = form ? `assent draft ${location.pathname} ${form.dataset.draft}` : "";
  const LEFT_OUT = ["csrf", "slot", "request", "opened", "seconds"];
  const written = () => [...new FormData(form)].filter(([name]) => !LEFT_OUT.includes(name));
  const stored = (work) => { try { return work(window.localStorage); } catch { return null; } };
  const kept = (name) => { try { return window.sessionStorage.getItem(name); } catch { return null; } };  // of this tab
  const keepFor = (name, value) => { try { window.sessionStorage.setItem(name, value); } catch { /* no storage */ } };
  const first = form ? JSON.stringify(written()) : "";
  const drafts = (storage) => Object.keys(storage).filter((name) => name.startsWith("assent draft "));
  function keep() {
    const now = JSON.stringify(written());
    stored((storage) => now === first ? storage.removeItem(place) : storage.setItem(place, now));
  }
  function restore() {
    const draft = stored((storage) => JSON.parse(storage.getItem(place)));
    if (!Array.isArray(draft) || one("#problem")) return;
    for (const [name, value] of draft) {
      for (const field of all(`[name="${CSS.escape(name)}"]`, form)) {
        if (field.type === "radio") field.checked = field.value === value;
        else field.value = value;
      }
    }
    if (JSON.stringify(written()) !== first) say("What you had begun is here again.", "plain");
  }
  function tidy() {  // drafts of items that are long gone
    stored((storage) => {
      const mine = drafts(storage).filter((name) => name !== place);
      mine.slice(0, Math.max(0, mine.length - 50)).forEach((name) => storage.removeItem(name));
    });
  }

  // ---- time: only while the page is in sight and somebody is there

  const spent = form ? `assent seconds ${location.pathname} ${form.dataset.draft}` : "";
  const before = JSON.parse(kept(spent) || "null");
  const opened = before ? before[0] : form && form.elements.opened.value;
  let seconds = before ? before[1] : 0, active = Date.now();
  const AWAY = 60000;
  setInterval(() => { if (!document.hidden && Date.now() - active < AWAY) seconds += 1; }, 1000);
  addEventListener("pagehide", () => { if (form && !sent) keepFor(spent, JSON.stringify([opened, seconds])); });
  for (const name of ["keydown", "pointerdown", "pointermove", "scroll", "wheel"]) {
    addEventListener(name, () => { active = Date.now(); }, { passive: true });
  }

  // ---- sending: one request, with the same number however often it is sent

  let sending = false, sent = false;
  const SAVED = "assent saved";
  async function send(target) {
    if (sending) return;
    sending = true;
    const buttons = all("button"), focused = document.activeElement;
    if (target === form) [form.elements.opened.value, form.elements.seconds.value] = [opened, seconds];
    buttons.forEach((button) => { button.disabled = true; });
    target.classList.add("saving");
    let answer = null, said = null;
    try {
      answer = await fetch(target.getAttribute("action"), {
        method: "POST", body: new URLSearchParams(new FormData(target)), credentials: "same-origin",
        headers: { Accept: "application/json" }, signal: AbortSignal.timeout(30000),
      });
      said = await answer.json();
    } catch { said = null; }
    if (answer && answer.ok && said) {
      if (target === form) stored((storage) => storage.removeItem(place));
      sent = target !== one("#undo");
      if (sent) keepFor(spent, "");
      keepFor(SAVED, target === form ? "Saved." : " ");
      location.replace(said.next);
      return;
    }
    sending = false;
    buttons.forEach((button) => { button.disabled = false; });
    target.classList.remove("saving");
    if (focused && focused !== document.activeElement) focused.focus({ preventScroll: true });
    refused(target, answer, said && said.error);
  }
  function refused(target, answer, error) {
    keep();
    const again = made("button", "Send again");
    again.type = "button";
    again.addEventListener("click", () => send(target));
    if (!error) {
      say(answer ? "The server gave no proper answer. What you wrote is kept here."
        : "Not saved: the server cannot be reached. What you wrote is kept here, and is sent as soon as there is a connection.", "bad", again);
      if (!answer) waiting = target;
    } else if (error.code === "signed_out" || error.code === "csrf") {
      const link = made("a", "Sign in again");
      link.href = `/login?next=${encodeURIComponent(location.pathname)}`;
      say(error.message, "bad", link);
    } else if (["lease", "slow"].includes(error.code) || answer.status === 429 || answer.status >= 500) {
      say(error.message, "bad", again);
      if (error.code === "lease") again.after(next());
    } else if (target !== one("#undo") && ["stale", "gone", "missing", "access"].includes(error.code)) {
      say(error.message, "bad", next());
    } else {
      say(error.message, "bad");
    }
    status.scrollIntoView({ block: "nearest" });
  }
  function next() {
    const link = made("a", "Go on with the next item", "button");
    link.href = location.pathname;
    return link;
  }
  let waiting = null;
  const retry = () => { if (waiting && !sending) { const target = waiting; waiting = null; send(target); } };
  addEventListener("online", retry);
  setInterval(() => { if (navigator.onLine) retry(); }, 5000);

  // ---- the lease

  function hold() {
    const mark = one("[data-lease]");
    if (!mark) return;
    let until = Date.now() + 1000 * Number(mark.dataset.lease);
    let asked = Date.now(), over = false;
    const whole = until - asked;
    const renew = async () => {
      asked = Date.now();
      try {
        const body = new URLSearchParams({ csrf: form.elements.csrf.value, slot: form.dataset.slot });
        const answer = await fetch(mark.dataset.renew, { method: "POST", body, headers: { Accept: "application/json" } });
        const said = await answer.json();
        if (answer.ok) until = Date.now() + 1000 * said.seconds;
        else if (answer.status !== 503 && !over) { over = true; refused(form, answer, said.error); }
      } catch { /* saving will say it */ }
    };
    let told = "";
    setInterval(() => {
      const left = until - Date.now();
      if (!over && active > asked && Date.now() - asked > whole / 3) renew();
      const late = left < 0 ? "Your time for this item is over; save it before somebody else gets it." : "";
      mark.textContent = late || (left < 120000 ? `This item is yours for ${Math.ceil(left / 1000)} s more` : "");
      if (mark.textContent && told !== late) tell(late || mark.textContent);
      told = mark.textContent ? late : null;
    }, 1000);
  }

  // ---- folded parts, help, raw text

  function open(name) {
    if (name === "skip") {
      const box = one("#skip");
      box.open = true;
      box.scrollIntoView({ block: "nearest" });
      one("input[type=radio]", box).focus();
    } else {
      const box = one(`[data-folded="${name}"]`);
      if (box) box.classList.remove("folded");
      const field = one("[name=comment]", form);
      field.focus();
      field.setSelectionRange(field.value.length, field.value.length);
    }
  }
  function close(name) {
    const box = one("#" + name);
    if (box.tagName === "DIALOG") box.close();
    else { box.open = false; (one("#save") || document.body).focus(); }
  }
  function help() {
    const box = one("#help");
    if (!box) return void location.assign(one("[data-help]").href || location.pathname + "/instructions");
    one("#keys").replaceChildren(...keys().flatMap(([key, words]) => {
      const term = made("dt");
      term.append(made("kbd", key));
      return [term, made("dd", words)];
    }));
    if (!box.open) box.showModal();
    box.scrollTop = 0;
  }
  function keys() {
    const found = new Map();
    for (const element of all("[data-key]")) {
      if (element.closest("#skip")) continue;
      const label = element.closest("label") || element;
      const words = [...label.childNodes].filter((node) => node.nodeName !== "KBD").map((node) => node.textContent).join("").trim();
      if (element.closest("[data-row]") && kind === "attributes") found.set(ratings(), "Rate, and go on to the next");
      else if (!found.has(element.dataset.key)) found.set(element.dataset.key, kind === "yesno" && element.closest("[data-row]") ? `${words}, and go on` : words);
    }
    const more = {
      ranking: [["1 …", "The next best answer"], ["=", "Tie it with the one before"], ["⌫", "Take the last one back"]],
      attributes: [["↑ ↓", "Another attribute"], ["[ ]", "Another answer"]], yesno: [["↑ ↓", "Another answer"]],
      edit: [["e", "Write"], ["Ctrl Enter", "Save, also while you write"]],
      spans: [["← →", "Go by words"], ["⇧ ← →", "More or fewer words"], ["↑ ↓", "Go by lines"], ["[ ]", "Another answer"], ["⌫", "Take a mark away"], ["m", "Say why at a mark"]],
    };
    if (one(".earlier")) found.set("o", "Earlier turns");
    found.set("Esc", "Leave a text, or close what is open");
    return [...(more[kind] || []), ...found];
  }
  function ratings() {
    const names = all("[data-key]", rows[row]).map((each) => each.dataset.key);
    return `${names[0]} … ${names[names.length - 1]}`;
  }
  function toggle(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    if (button.dataset.toggle === "differences" && !differences(on)) return;
    button.setAttribute("aria-pressed", String(on));
    if (button.dataset.toggle === "raw") {
      all(".answer .raw").forEach((element) => { element.hidden = !on; });
      all(".answer .shown").forEach((element) => { element.hidden = on; });
    }
  }

  // ---- differences, word by word, in the text as it is shown

  function words(element) {
    const found = [];
    const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      for (const [start, end] of Texts.words(node.data)) found.push({ node, start, end, text: node.data.slice(start, end) });
    }
    return found;
  }
  let compared = [];  // what stands for a piece of text, and the piece itself
  function differences(on) {
    for (const [box, node] of compared) box.replaceWith(node);
    compared = [];
    if (!on) { say(""); return true; }
    for (const sort of ["shown", "raw"]) {
      const texts = all(`.answer .${sort}`, form).map(words);
      for (const [place, text] of texts.slice(1).entries()) {
        const common = Texts.common(...[texts[0], text].map((list) => list.map((word) => word.text)));
        if (!common) { say("These answers are too long to compare word by word."); return false; }
        mark(text, common.seconds);
        if (place === 0 && texts.length === 2) mark(texts[0], common.firsts);
      }
    }
    if (all("mark.differs").length === 0) say("The answers are the same, word for word.", "plain");
    else if (all(".answer", form).length > 2) say("Marked: what is not in answer A.", "plain");
    return true;
  }
  function mark(text, common) {
    const runs = new Map();  // what differs, by the piece of text that it stands in
    text.forEach(({ node, start, end }, place) => {
      if (common.has(place)) return;
      if (!runs.has(node)) runs.set(node, []);
      const mine = runs.get(node), last = mine[mine.length - 1];
      if (last && last.to === place - 1) { last.to = place; last.end = end; } else mine.push({ start, end, to: place });
    });
    for (const [node, mine] of runs) {
      if (!node.parentNode.namespaceURI.endsWith("xhtml")) continue;
      const box = made("span");
      let at = 0;
      for (const { start, end } of mine) {
        box.append(node.data.slice(at, start), made("mark", node.data.slice(start, end), "differs"));
        at = end;
      }
      box.append(node.data.slice(at));
      node.replaceWith(box);
      compared.push([box, node]);
    }
  }

  // ---- rows that are answered one after the other: attributes, yes/no

  const rows = form ? all("[data-row]", form) : [];
  const panels = form ? all("[data-panel]", form) : [];
  let row = 0;
  const answered = (element) => one(":checked", element) !== null;
  function at(place, focus = true) {
    if (!rows.length) return;
    row = Math.min(Math.max(place, 0), rows.length - 1);
    rows.forEach((element, index) => element.classList.toggle("current", index === row));
    const panel = rows[row].closest("[data-panel]");
    panels.forEach((element) => { element.hidden = element !== panel; });
    all("[data-step]").forEach((tab) => {
      const mine = one(`[data-panel="${tab.dataset.step}"]`);
      tab.setAttribute("aria-selected", String(mine === panel));
      one(".state", tab).textContent = all("[data-row]", mine).every(answered) ? "✓" : "";
    });
    if (focus) {
      (one(":checked", rows[row]) || one("input", rows[row])).focus({ preventScroll: true });
      rows[row].scrollIntoView({ block: "nearest" });
    }
  }
  function onward() {
    const open = rows.findIndex((element, index) => index > row && !answered(element));
    if (row + 1 < rows.length && (open < 0 || open === row + 1)) at(row + 1);
    else if (open >= 0) at(open);
    else { at(row, false); one("#save").focus({ preventScroll: true }); }
  }
  function panel(step) {
    const place = panels.indexOf(rows[row].closest("[data-panel]")) + step;
    if (panels[place]) at(rows.indexOf(one("[data-row]", panels[place])));
  }

  // ---- ranking

  const ranks = one("#ranks");
  const selects = form ? all("select[name^=rank-]", form) : [];
  const LETTERS = "ABCDEFGHI";
  let levels = [];
  function read() {
    const by = new Map();
    selects.forEach((select, place) => {
      if (select.value) by.set(Number(select.value), [...(by.get(Number(select.value)) || []), place]);
    });
    levels = [...by.keys()].sort((a, b) => a - b).map((rank) => by.get(rank));
  }
  function rank(changed) {
    levels = changed.map((level) => [...level].sort()).filter((level) => level.length);
    selects.forEach((select, place) => {
      const level = levels.findIndex((each) => each.includes(place));
      select.value = level < 0 ? "" : String(level + 1);
    });
    draw();
    keep();
    tell(levels.map((level) => level.map((place) => LETTERS[place]).join(" = ")).join(", ") || "Nothing is ranked");
  }
  const without = (place) => levels.map((level) => level.filter((each) => each !== place));
  function draw() {
    const left = selects.map((_, place) => place).filter((place) => !levels.flat().includes(place));
    const parts = [made("span", "Best first:", "soft")];
    levels.forEach((level, index) => {
      parts.push(gap(index));
      const box = made("span", "", "level");
      box.dataset.level = index;
      level.forEach((each, order) => { if (order) box.append(made("span", "=", "tie")); box.append(chip(each)); });
      parts.push(box);
    });
    parts.push(gap(levels.length));
    if (!levels.length) parts.push(made("span", "nothing yet", "level nothing"));
    if (left.length) {
      const rest = made("span", "", "rest");
      rest.append(made("span", "to rank:", "soft"), ...left.map(chip));
      parts.push(rest);
    }
    ranks.replaceChildren(...parts);
    all("[data-rank]").forEach((card) => card.classList.toggle("chosen", levels.length > 0 && levels[0].includes(Number(card.dataset.rank))));
  }
  function gap(index) {
    const element = made("span", "", "gap-mark");
    element.dataset.gap = index;
    return element;
  }
  function chip(place) {
    const element = made("button", LETTERS[place], "chip");
    element.type = "button";
    element.dataset.chip = place;
    const level = levels.findIndex((each) => each.includes(place));
    element.setAttribute("aria-label", level < 0 ? `Answer ${LETTERS[place]}, not ranked` : `Answer ${LETTERS[place]}, place ${level + 1}`);
    element.addEventListener("click", () => { if (level < 0) { rank([...levels, [place]]); refocus(place); } });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || level < 0) return;
      event.preventDefault();
      event.stopPropagation();
      shift(place, level, step);
      refocus(place);
    });
    element.addEventListener("pointerdown", (event) => drag(event, place));
    return element;
  }
  const refocus = (place) => one(`[data-chip="${place}"]`).focus();
  function shift(place, level, step) {  // alone: past its neighbour; tied: out of the tie
    const changed = levels.map((each) => [...each]);
    if (levels[level].length > 1) {
      changed[level] = changed[level].filter((each) => each !== place);
      changed.splice(step < 0 ? level : level + 1, 0, [place]);
    } else if (changed[level + step]) {
      [changed[level], changed[level + step]] = [changed[level + step], changed[level]];
    }
    rank(changed);
  }
  function drag(event, place) {
    if (event.button) return;
    const from = event.currentTarget, x = event.clientX, y = event.clientY;
    let moved = false, target = null;
    const move = (moving) => {
      if (!moved && Math.hypot(moving.clientX - x, moving.clientY - y) < 5) return;
      moved = true;
      from.classList.add("dragged");
      all(".over", ranks).forEach((element) => element.classList.remove("over"));
      const under = document.elementFromPoint(moving.clientX, moving.clientY);
      target = nearest(under && under.closest("#ranks") ? under : null, moving.clientX, place);
      if (target) target.classList.add("over");
    };
    const end = (ending) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      removeEventListener("pointercancel", end);
      from.classList.remove("dragged");
      all(".over", ranks).forEach((element) => element.classList.remove("over"));
      if (!moved || !target || ending.type === "pointercancel") return;
      from.addEventListener("click", (click) => click.stopImmediatePropagation(), { once: true, capture: true });
      const changed = without(place);
      if (target.dataset.gap !== undefined) changed.splice(Number(target.dataset.gap), 0, [place]);
      else changed[Number(target.dataset.level)].push(place);
      rank(changed);
    };
    event.preventDefault();
    from.focus();
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
  }
  function nearest(under, x, place) {  // a level under the pointer (a tie), else the gap that is closest
    if (!under) return null;
    const level = under.closest(".level[data-level]");
    if (level && ranks.dataset.ties) {
      const box = level.getBoundingClientRect(), inner = (x - box.left) / box.width;
      if (inner > 0.2 && inner < 0.8 && !levels[Number(level.dataset.level)].every((each) => each === place)) return level;
    }
    return all("[data-gap]", ranks).map((element) => {
      const box = element.getBoundingClientRect();
      return [Math.abs(box.left + box.width / 2 - x), element];
    }).sort((a, b) => a[0] - b[0])[0][1];
  }
  function rankKey(key) {
    const place = Number(key) - 1;
    if (/^[1-9]$/.test(key) && place < selects.length) {
      if (!levels.flat().includes(place)) rank([...levels, [place]]);
      else tell(`${LETTERS[place]} has a place already`);
    } else if (key === "=" && ranks.dataset.ties && levels.length > 1) {
      rank([...levels.slice(0, -2), levels.slice(-2).flat()]);
    } else if (key === "Backspace" && levels.length) {
      const last = levels[levels.length - 1];
      rank([...levels.slice(0, -1), last.slice(0, -1)]);
    } else return false;
    return true;
  }

  // ---- passages: places are counted in code points, as the server counts them

  const texts = form ? all(".markable", form) : [];
  const sources = texts.map((element) => [...element.textContent]);
  let spans = [], cursor = null;  // {answer, from, to}: places in code points, `to` beyond the end
  const starts = sources.map((letters) => Texts.steps(letters.join("")));
  const colour = (label) => all("[data-mark]").findIndex((button) => button.dataset.mark === label) % 9;
  const quote = (span) => sources[span.answer].slice(span.start, span.end).join("");
  function drawSpans() {
    form.elements.spans.value = JSON.stringify(spans);
    texts.forEach((element, answer) => {
      const letters = sources[answer], cuts = new Set([0, letters.length]);
      const mine = spans.filter((span) => span.answer === answer);
      mine.forEach((span) => { cuts.add(span.start); cuts.add(span.end); });
      if (cursor && cursor.answer === answer) { cuts.add(cursor.from); cuts.add(cursor.to); }
      const places = [...cuts].sort((a, b) => a - b);
      element.replaceChildren(...places.slice(0, -1).map((start, index) => {
        const text = letters.slice(start, places[index + 1]).join("");
        const span = mine.find((each) => each.start <= start && start < each.end);
        const chosen = cursor && cursor.answer === answer && cursor.from <= start && start < cursor.to;
        if (!span && !chosen) return document.createTextNode(text);
        const piece = made(span ? "mark" : "span", text, [span ? `s${colour(span.label)}` : "", chosen ? "at" : ""].join(" ").trim());
        if (span) piece.title = span.label + (span.comment ? `: ${span.comment}` : "");
        return piece;
      }));
    });
    one("#marks").replaceChildren(...spans.map(listed));
  }
  function listed(span) {
    const line = made("div", "", "mark-line");
    const tag = made("span", span.label, `label-tag s${colour(span.label)}`);
    const said = made("q", quote(span).length > 80 ? `${quote(span).slice(0, 80)} …` : quote(span));
    const note = made("input");
    note.placeholder = "Why?";
    note.value = span.comment || "";
    note.maxLength = 1000;
    note.setAttribute("aria-label", `Why ${span.label}: ${quote(span).slice(0, 60)}`);
    note.addEventListener("input", () => {
      if (note.value.trim()) span.comment = note.value; else delete span.comment;
      form.elements.spans.value = JSON.stringify(spans);
      keep();
    });
    const drop = made("button", "✕");
    drop.type = "button";
    drop.setAttribute("aria-label", `Take the mark ${span.label} away`);
    drop.addEventListener("click", () => { spans = spans.filter((each) => each !== span); drawSpans(); keep(); });
    const letter = made("span", LETTERS[span.answer], "letter");
    line.append(letter, tag, said, note, drop);
    return line;
  }
  function chosen() {  // what is selected with the mouse, else what the keys have chosen
    const selection = getSelection();
    if (!selection.rangeCount || selection.isCollapsed) {
      return cursor && cursor.to > cursor.from ? { answer: cursor.answer, start: cursor.from, end: cursor.to } : null;
    }
    const parts = texts.map((text) => inside(selection.getRangeAt(0), text)).filter((part) => part.toString().trim());
    if (parts.length !== 1) return null;
    const [range] = parts, answer = texts.findIndex((text) => text.contains(range.commonAncestorContainer));
    const before = range.cloneRange();
    before.selectNodeContents(texts[answer]);
    before.setEnd(range.startContainer, range.startOffset);
    let start = [...before.toString()].length, end = start + [...range.toString()].length;
    while (start < end && /\s/.test(sources[answer][start])) start++;
    while (end > start && /\s/.test(sources[answer][end - 1])) end--;
    return end > start ? { answer, start, end } : null;
  }
  function inside(range, text) {  // a selected paragraph often ends in the next box
    const part = document.createRange();
    part.selectNodeContents(text);
    if (range.compareBoundaryPoints(Range.START_TO_START, part) > 0) part.setStart(range.startContainer, range.startOffset);
    if (range.compareBoundaryPoints(Range.END_TO_END, part) < 0) part.setEnd(range.endContainer, range.endOffset);
    return part;
  }
  function markAs(label) {
    const span = chosen();
    if (!span) return say("Select words of one answer first, with the mouse or with the arrow keys.", "plain");
    const other = spans.find((each) => each.answer === span.answer && each.start < span.end && span.start < each.end);
    if (other && other.start === span.start && other.end === span.end) other.label = label;
    else if (other) return say(`Part of this is marked already (${other.label}). Take that mark away first.`, "plain");
    else spans.push({ ...span, label });
    spans.sort((a, b) => a.answer - b.answer || a.start - b.start);
    say("");
    getSelection().removeAllRanges();
    const focused = texts.indexOf(document.activeElement);
    if (cursor) cursor = { ...cursor, from: span.start, to: span.end, end: cursor.last };
    drawSpans();
    keep();
    if (focused >= 0) texts[focused].focus();
    tell(`Marked ${label}: ${quote(span)}`);
  }
  function go(key, more) {
    if (!cursor) cursor = { answer: 0, first: -1, last: -1 };
    const words = starts[cursor.answer];
    if (!words.length) return;
    const lines = (place) => sources[cursor.answer].slice(0, words[place][0]).filter((letter) => letter === "\n").length;
    let to = cursor.last;
    if (key === "ArrowRight") to += 1;
    if (key === "ArrowLeft") to -= 1;
    if (key === "Home") to = 0;
    if (key === "End") to = words.length - 1;
    if (key === "ArrowDown" || key === "ArrowUp") {
      const step = key === "ArrowDown" ? 1 : -1, line = lines(Math.max(to, 0));
      do to += step; while (words[to] && lines(to) === line && Math.abs(to - cursor.last) < 12);
    }
    to = Math.min(Math.max(to, 0), words.length - 1);
    const from = more && cursor.first >= 0 ? cursor.first : to;
    cursor = { answer: cursor.answer, first: from, last: to, from: words[Math.min(from, to)][0], to: words[Math.max(from, to)][1] };
    getSelection().removeAllRanges();
    drawSpans();
    const piece = one(".at", texts[cursor.answer]);
    if (piece) piece.scrollIntoView({ block: "nearest" });
    tell(sources[cursor.answer].slice(cursor.from, cursor.to).join(""));
  }
  function spanKey(key, more) {
    if (/^Arrow|^Home$|^End$/.test(key)) { go(key, more); return true; }
    if (key === "[" || key === "]") {
      const answer = (cursor ? cursor.answer : 0) + (key === "]" ? 1 : -1);
      if (texts[answer]) { cursor = { answer, first: -1, last: -1 }; texts[answer].focus(); go("ArrowRight", false); }
      return true;
    }
    const near = cursor && spans.find((each) => each.answer === cursor.answer && each.start < cursor.to && cursor.from < each.end);
    if (key === "Backspace" || key === "Delete") {
      const gone = near || spans[spans.length - 1];
      if (gone) { spans = spans.filter((each) => each !== gone); drawSpans(); keep(); tell(`Mark ${gone.label} taken away`); }
      return true;
    }
    if (key === "m" && spans.length) {
      const line = spans.indexOf(near || spans[spans.length - 1]);
      all("#marks input")[line].focus();
      return true;
    }
    return false;
  }

  // ---- edit

  const text = form ? one("textarea#text", form) : null;
  let begun = "", origin = "none";
  function begin(place) {
    if (text.value.trim() && text.value !== begun && place !== origin) {
      one(`[name=from][value="${origin}"]`, form).checked = true;
      return say("Your text is kept: empty it first to begin from another answer.", "plain");
    }
    text.value = place === "none" ? "" : raws()[Number(place)];
    begun = text.value;  // with the line ends of the field
    origin = place;
    keep();
    text.focus();
    text.setSelectionRange(0, 0);
    text.scrollTop = 0;
  }
  const raws = () => all(".answer", form).map((card) => { const raw = one(".raw", card); return raw ? raw.textContent : ""; });

  // ---- keys

  /* The key's own letter: with Caps Lock as without; on keyboards of other scripts, and where digits want Shift, what
     is printed at its place on an English one. */
  function named(event) {
    const key = event.key.toLowerCase(), code = /^(?:Key|Digit)(.)$/.exec(event.code || "");
    if (event.key.length > 1 || /^[a-z0-9=?[\]]$/.test(key)) return event.key.length > 1 ? event.key : key;
    if (code && (/^[a-z]$/i.test(code[1]) ? !/^[ -~]$/.test(key) : !event.shiftKey)) return code[1].toLowerCase();
    return { BracketLeft: "[", BracketRight: "]" }[event.code] || key;
  }
  function press(event) {
    const target = event.target, box = one("#help"), skip = one("#skip");
    if (event.isComposing) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && form && !event.repeat && !(box && box.open)) {
      event.preventDefault();
      (skip && skip.contains(target) ? one("#skip-form") : form).requestSubmit();
      return;
    }
    const third = event.getModifierState("AltGraph") || (event.altKey && /^[=?[\]]$/.test(event.key));
    if (!third && (event.ctrlKey || event.metaKey || event.altKey)) return;
    if (event.repeat && !typing(target) && !/^(Arrow|Tab|Page|Home|End|Backspace)/.test(event.key)) {
      if (event.key !== " ") event.preventDefault();  // one press is one answer, however long it lasts
      return;
    }
    if (box && box.open) { if (event.key === "?") { event.preventDefault(); box.close(); } return; }
    if (event.key === "Escape") {
      if (skip && skip.open) close("skip");
      else if (typing(target)) target.blur();
      return;
    }
    if (typing(target)) {
      if (event.key === "Enter" && form && target.tagName === "INPUT" && form.contains(target)) { event.preventDefault(); target.blur(); }
      return;
    }
    if (handled(event, skip)) event.preventDefault();
  }
  function handled(event, skip) {
    const { target } = event, key = named(event);
    if (skip && skip.open) {
      if (key === "Enter" && !target.matches("button, a, summary")) { one("#skip-form").requestSubmit(); return true; }
      const reason = one(`[data-key="${CSS.escape(key)}"]`, skip);
      if (reason) reason.click();
      return Boolean(reason);
    }
    if (key === "Enter") {
      if (!form || (target.matches("button, a, summary, .chip") && target.id !== "save")) return false;
      form.requestSubmit();
      return true;
    }
    if (ranks && rankKey(key)) return true;
    if (texts.length && spanKey(key, event.shiftKey)) return true;
    if (rows.length) {
      if (key === "ArrowDown" || key === "ArrowUp") { at(row + (key === "ArrowDown" ? 1 : -1)); return true; }
      if (panels.length && (key === "[" || key === "]")) { panel(key === "]" ? 1 : -1); return true; }
      const own = one(`[data-key="${CSS.escape(key)}"]`, rows[row]);
      if (own) { own.click(); onward(); return true; }
    }
    if (key === "o" && one(".earlier")) { one(".earlier").open = !one(".earlier").open; return true; }
    if (key === "e" && text) { text.focus(); return true; }
    if (key === "?") { if (one("[data-help]")) help(); return true; }
    const control = all(`[data-key="${CSS.escape(key)}"]`).find((each) => !each.closest("#skip, dialog, [data-row]"));
    if (!control || control.disabled) return false;
    control.click();
    if (control.type === "radio" && !text) {
      control.focus({ preventScroll: true });
      if (control.getBoundingClientRect().top > innerHeight) control.scrollIntoView({ block: "nearest" });  // a low window
    }
    return true;
  }
  document.addEventListener("keydown", press);

  // ---- what is clicked

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-help], [data-open], [data-close], [data-toggle], [data-mark], [data-step]");
    if (!target) return;
    const { open: opened, close: closed, toggle: toggled, mark: label, step } = target.dataset;
    if (target.hasAttribute("data-help")) { event.preventDefault(); help(); }
    else if (opened) open(opened);
    else if (closed) close(closed);
    else if (toggled) toggle(target);
    else if (label) markAs(label);
    else if (step) at(rows.indexOf(one("[data-row]", one(`[data-panel="${step}"]`))));
  });
  document.addEventListener("mousedown", (event) => {
    if (event.target.closest("[data-mark]")) event.preventDefault();  // what is selected stays so
  });
  document.addEventListener("submit", (event) => {
    if (event.target.getAttribute("action") === "/logout") stored((storage) => drafts(storage).forEach((name) => storage.removeItem(name)));
    if (event.target.id === "work" || event.target.id === "skip-form" || event.target.id === "undo") {
      event.preventDefault();
      if (event.target === form && nothing()) say("Nothing is marked. Save once more if there is nothing to mark.", "plain");
      else send(event.target);
    }
  });
  let asked = false;
  function nothing() {  // no marks are an answer, too, but none that one gives by pressing a key twice
    const first = kind === "spans" && !spans.length && !asked;
    asked = asked || first;
    return first;
  }
  const scrolls = () => all(".prose pre, .prose .wide, .prose .formula, .turn .long").forEach((element) => {
    if (element.scrollWidth > element.clientWidth || element.scrollHeight > element.clientHeight + 1) element.tabIndex = 0;
  });
  scrolls();

  if (!form) return;
  form.noValidate = true;
  all("[data-folded]").forEach((box) => box.classList.add("folded"));
  restore();
  tidy();
  if (one("[name=comment]", form) && one("[name=comment]", form).value) all("[data-folded]").forEach((box) => box.classList.remove("folded"));
  if (ranks) { read(); draw(); selects.forEach((select) => select.addEventListener("change", () => { read(); rank(levels); })); }
  if (rows.length) {
    at(Math.max(rows.findIndex((element) => !answered(element)), 0), false);
    rows.forEach((element, index) => {
      element.addEventListener("focusin", () => { if (index !== row) at(index, false); });
      element.addEventListener("change", () => at(row, false));
    });
  }
  if (texts.length) {
    try { spans = JSON.parse(form.elements.spans.value); } catch { spans = []; }
    drawSpans();
    texts.forEach((element, answer) => element.addEventListener("focus", () => {
      if (!cursor || cursor.answer !== answer) cursor = { answer, first: -1, last: -1 };
    }));
  }
  if (text) {
    const from = one("[name=from]:checked", form);
    origin = from ? from.value : "none";
    begun = origin === "none" ? "" : raws()[Number(origin)].replace(/\r\n?/g, "\n");
    all("[name=from]", form).forEach((radio) => radio.addEventListener("change", () => begin(radio.value)));
  }
  const follow = () => all("[data-by]").forEach((card) => {
    const chosen = one(`[name="${card.dataset.by}"]:checked`, form);
    card.classList.toggle("chosen", chosen !== null && chosen.value === card.dataset.at);
  });
  form.addEventListener("input", () => { keep(); follow(); });
  form.addEventListener("change", () => { keep(); follow(); });
  follow();
  hold();
  const saved = kept(SAVED);
  if (saved) {  // on to the next one without the way through the page's head
    keepFor(SAVED, "");
    one("#main").focus({ preventScroll: true });
    if (saved.trim()) setTimeout(() => tell(`${saved} The next item.`), 500);
  }
})();
