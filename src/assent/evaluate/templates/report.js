"use strict";
// The page's own script: copies commands, and shows, searches, filters and sorts the answers that lie in #data.
// Texts become text nodes only. It makes the elements of samples.html.j2, and differences as evaluate/differences.py.
(function () {
  const at = (id) => document.getElementById(id);

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  if (!at("data")) return;

  const data = JSON.parse(at("data").textContent);
  const LEAST = 0.25, MOST = 4000000;
  let set = data.sets[0], found = [], page = 0;

  function make(tag, name, ...children) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  }

  // ---- what a row says

  const baseline = (row) => {
    const chosen = Number(at("with").value);
    if (chosen >= 0) return row[3][chosen] ? chosen : -1;
    return row[3].findIndex((answer) => answer);
  };

  function gain(row, column, source) {
    const base = baseline(row), ours = row[3][column];
    if (base < 0 || base === column || !ours || source < 0) return null;
    const value = ours[3][source];
    if (value === null) return null;
    if (set.sources[source][1]) return base === set.baseline ? value - 0.5 : null;
    const other = row[3][base][3][source];
    return other === null ? null : value - other;
  }

  function columns(row) {
    const mode = at("show").value, chosen = Number(at("with").value);
    if (mode === "ends") {
      const there = row[3].map((answer, place) => (answer ? place : -1)).filter((place) => place >= 0);
      return [...new Set([there[0], there[there.length - 1]])];
    }
    const first = chosen >= 0 ? chosen : baseline(row);
    if (mode !== "all") return [...new Set([first, Number(mode)])].filter((place) => place >= 0);
    const all = set.columns.map((_, place) => place);
    if (chosen < 0) return all.filter((place) => row[3][place]);
    return [first, ...all.filter((place) => place !== first)];
  }

  const outcome = (value) => (value === null ? "none" : value > 0 ? "win" : value < 0 ? "loss" : "tie");
  const WORDS = { none: "no verdict", win: "wins", loss: "loses", tie: "ties" };

  // ---- which rows, in which order

  const texts = new Map();
  function haystack(row) {
    if (!texts.has(row)) {
      const prompt = set.prompts[row[0]][2];
      const said = typeof prompt === "string" ? [prompt] : prompt.map((turn) => turn[1]);
      texts.set(row, said.concat(row[3].map((answer) => (answer ? answer[0] : ""))).join("\n").toLowerCase());
    }
    return texts.get(row);
  }

  function passes(row, wanted) {
    if (wanted.words && !haystack(row).includes(wanted.words)) return false;
    if (wanted.kind !== "" && set.prompts[row[0]][1] !== Number(wanted.kind)) return false;
    if (!wanted.outcome && !wanted.state) return true;
    const shown = columns(row), base = baseline(row), others = shown.filter((place) => place !== base);
    if (wanted.outcome && !others.some((place) => outcome(gain(row, place, wanted.by)) === wanted.outcome)) return false;
    const answers = shown.map((place) => row[3][place]);
    switch (wanted.state) {
      case "cut": return answers.some((answer) => answer && answer[2] === 0);
      case "failed": return set.baseline >= 0 && shown.some((column) => row[3][column] && row[3][column][3].some(
        (value, source) => value === null && !(set.sources[source][1] && column === set.baseline)));
      case "missing": return answers.some((answer) => !answer);
      case "same": return others.some((place) => base >= 0 && row[3][place] && row[3][place][0] === row[3][base][0]);
    }
    return true;
  }

  function keyOf(order, by) {
    const most = (row, sign) => {
      const gains = columns(row).map((place) => gain(row, place, by)).filter((value) => value !== null);
      return gains.length ? Math.max(...gains.map((value) => sign * value)) : -Infinity;
    };
    const length = (row) => Math.max(...columns(row).map((place) => (row[3][place] ? row[3][place][0].length : 0)));
    return { up: (row) => most(row, 1), down: (row) => most(row, -1), long: length, short: (row) => -length(row) }[order];
  }

  function choose() {
    const wanted = { words: at("find").value.trim().toLowerCase(), kind: at("kind").value, by: Number(at("by").value),
      outcome: at("outcome").value, state: at("state").value };
    found = set.rows.filter((row) => passes(row, wanted));
    const key = keyOf(at("order").value, wanted.by);
    if (key) {
      const keys = new Map(found.map((row) => [row, key(row)]));
      found.sort((a, b) => (keys.get(a) === keys.get(b) ? 0 : keys.get(b) - keys.get(a)));
    }
    turn(0);
  }

  // ---- differences, as differences.py

  function difference(first, second) {
    if (first === second) return { parts: [["same", second]], note: "the same answer" };
    const word = /\s*(?:[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s])/gu;
    const a = first.match(word) || [], b = second.match(word) || [];
    const x = a.map((text) => text.trim()), y = b.map((text) => text.trim());
    let start = 0, end = 0;
    const most = Math.min(x.length, y.length);
    while (start < most && x[start] === y[start]) start++;
    while (end < most - start && x[x.length - 1 - end] === y[y.length - 1 - end]) end++;
    const n = x.length - start - end, m = y.length - start - end;
    if (n * m > MOST) return { parts: [["same", second]], note: "too long to compare word by word" };
    const inner = steps(x.slice(start, start + n), y.slice(start, start + m));
    const common = start + end + inner.filter((kind) => kind === "same").length;
    if (2 * common < LEAST * (x.length + y.length)) return { parts: [["same", second]], note: "other words throughout" };
    const kinds = [...Array(start).fill("same"), ...inner, ...Array(end).fill("same")];
    return { parts: parts(kinds, a, b, second.slice(b.join("").length)), note: "" };
  }

  function steps(x, y) {
    const width = y.length + 1, table = new Uint16Array((x.length + 1) * width);
    for (let i = 1; i <= x.length; i++) {
      for (let j = 1; j < width; j++) {
        const up = table[(i - 1) * width + j], left = table[i * width + j - 1];
        table[i * width + j] = x[i - 1] === y[j - 1] ? table[(i - 1) * width + j - 1] + 1 : up > left ? up : left;
      }
    }
    const kinds = [];
    let i = x.length, j = y.length;
    while (i || j) {
      if (i && j && x[i - 1] === y[j - 1]) { kinds.push("same"); i--; j--; }
      else if (j && (!i || table[i * width + j - 1] === table[i * width + j])) { kinds.push("added"); j--; }
      else { kinds.push("removed"); i--; }
    }
    return kinds.reverse();
  }

  function parts(kinds, a, b, tail) {
    const made = [];
    const put = (kind, text) => {
      const blank = kind === "added" ? text.slice(0, text.length - text.trimStart().length) : "";
      if (blank) put("same", blank);
      const rest = text.slice(blank.length), last = made[made.length - 1];
      if (rest && last && last[0] === kind) last[1] += rest;
      else if (rest) made.push([kind, rest]);
    };
    let i = 0, j = 0, place = 0;
    while (place < kinds.length) {
      let removed = "", added = "";
      for (; place < kinds.length && kinds[place] !== "same"; place++) {
        if (kinds[place] === "removed") removed += a[i++]; else added += b[j++];
      }
      put("removed", removed);
      put("added", added);
      if (place < kinds.length) { put("same", b[j++]); i++; place++; }
    }
    put("same", tail);
    return made;
  }

  // ---- a row as elements, as samples.html.j2

  const number = (value) => value.toFixed(2).replace("-", "\u2212");

  function chip(label, value, warns) {
    const made = make("span", warns ? "chip cut" : "chip", label);
    if (value) made.append(" ", make("b", "", value));
    return made;
  }

  function chips(answer) {
    const made = make("div", "chips");
    set.sources.forEach(([name, judged], place) => {
      const value = answer[3][place], reason = answer[4] && answer[4][place];
      if (value !== null) made.append(chip(name, judged ? (value > 0.5 ? "won" : value < 0.5 ? "lost" : "tie") : number(value)));
      else if (reason !== undefined) made.append(chip(name, "unscored: " + set.why[reason], true));
      else if (!judged && set.baseline >= 0) made.append(chip(name, "unscored", true));
    });
    if (answer[1] >= 0) made.append(chip(answer[1] + " tokens"));
    if (answer[2] === 0) made.append(chip("cut at the length limit", "", true));
    return made;
  }

  function shown(row, column) {
    const answer = row[3][column], base = baseline(row), box = make("div", "answer");
    const heading = make("h4", "", set.columns[column]), text = make("div", "text");
    box.style.setProperty("--c", answer ? set.colors[column] : "var(--line)");
    box.append(heading, text);
    if (!answer) {
      text.classList.add("empty");
      text.append("(no answer)");
      return box;
    }
    if (base !== column && set.sources.length && Number(at("with").value) >= 0) {
      const word = WORDS[outcome(gain(row, column, Number(at("by").value)))];
      heading.append(make("span", "outcome " + word.replace(" ", "-"), word));
    }
    if (!answer[0].trim()) {
      text.classList.add("empty");
      text.append("(empty answer)");
    } else if (base >= 0 && base !== column && at("marks").checked) {
      const { parts, note } = difference(row[3][base][0], answer[0]);
      const tags = { added: "ins", removed: "del" };
      text.append(...parts.map(([kind, said]) => (tags[kind] ? make(tags[kind], "", said) : said)));
      if (note) box.append(make("p", "said", note));
    } else {
      text.append(answer[0]);
    }
    box.append(chips(answer));
    return box;
  }

  function card(row) {
    const [number, kind, prompt] = set.prompts[row[0]];
    const heading = make("h3", "asked", "Prompt " + (number + 1).toLocaleString("en"));
    if (set.kinds[kind]) heading.append(make("span", "tag", set.kinds[kind]));
    if (row[2] > 1) heading.append(make("span", "tag", `answer ${row[1] + 1} of ${row[2]}`));
    const turns = typeof prompt === "string" ? [["user", prompt]] : prompt, bubbles = make("div", "bubbles");
    for (const [role, said] of turns) {
      const bubble = make("div", "bubble " + (["system", "assistant"].includes(role) ? role : "user"));
      if (role !== "user" || turns.length > 1) bubble.append(make("span", "role", role));
      bubble.append(said);
      bubbles.append(bubble);
    }
    return make("article", "card prompt", heading, bubbles,
      make("div", "answers", ...columns(row).map((column) => shown(row, column))));
  }

  function turn(to) {
    const last = Math.max(0, Math.ceil(found.length / data.page) - 1), all = set.rows.length.toLocaleString("en");
    page = Math.min(Math.max(0, to), last);
    at("rows").replaceChildren(...found.slice(page * data.page, (page + 1) * data.page).map(card));
    const first = page * data.page + 1, end = Math.min(found.length, (page + 1) * data.page);
    at("count").textContent = found.length
      ? `${first.toLocaleString("en")} to ${end.toLocaleString("en")} of ${found.length.toLocaleString("en")} found, of ${all}.`
      : `None of ${all} found.`;
    at("at").value = page + 1;
    at("at").max = last + 1;
    at("pages").textContent = "of " + (last + 1).toLocaleString("en");
    at("previous").disabled = page === 0;
    at("next").disabled = page === last;
    for (const box of document.querySelectorAll(".answer .text")) {
      if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;  // so that keys scroll it
    }
    mark();
  }

  function mark() {
    if (!window.Highlight || !CSS.highlights) return;
    CSS.highlights.delete("found");
    const words = at("find").value.trim().toLowerCase(), ranges = [];
    if (!words) return;
    const walk = document.createTreeWalker(at("rows"), NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      const text = node.data.toLowerCase();
      if (text.length !== node.data.length) continue;
      for (let place = text.indexOf(words); place >= 0; place = text.indexOf(words, place + words.length)) {
        const range = new Range();
        range.setStart(node, place);
        range.setEnd(node, place + words.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  // ---- controls

  function fill(select, options, value) {
    select.replaceChildren(...options.map(([key, label]) => {
      const option = make("option", "", label);
      option.value = key;
      return option;
    }));
    select.value = value;
  }

  function take(place) {
    set = data.sets[place];
    texts.clear();
    const names = set.columns.map((name, column) => [String(column), name]), run = set.baseline < 0;
    const many = set.columns.length > data.many, last = set.columns.length - (set.baseline === set.columns.length - 1 ? 2 : 1);
    fill(at("show"), [...(run ? [["ends", "first and last"]] : []), ["all", "all"], ...names],
      run ? "ends" : many ? String(last) : "all");
    fill(at("with"), run ? [["-1", "the first"], ...names] : names, String(set.baseline));
    fill(at("by"), set.sources.map(([name], source) => [String(source), name]), "0");
    fill(at("kind"), [["", "any"], ...set.kinds.map((kind, index) => [String(index), kind || "(none)"])], "");
    at("by-label").hidden = set.sources.length < 2;
    at("kind-label").hidden = set.kinds.length < 2;
    at("about").textContent = set.about;
    for (const id of ["find", "outcome", "state"]) at(id).value = "";
    at("order").value = "file";
    at("marks").checked = true;
    choose();
  }

  fill(at("of"), data.sets.map((each, place) => [String(place), each.name]), "0");
  at("of-label").hidden = data.sets.length < 2;
  at("of").addEventListener("change", () => take(Number(at("of").value)));
  let waiting = 0;
  at("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(choose, 120);
  });
  for (const id of ["show", "with", "by", "outcome", "kind", "state", "order"]) at(id).addEventListener("change", choose);
  at("marks").addEventListener("change", () => turn(page));
  at("reset").addEventListener("click", () => { take(Number(at("of").value)); at("find").focus(); });
  const move = (to) => { turn(to); at("answers").scrollIntoView(); };
  at("previous").addEventListener("click", () => move(page - 1));
  at("next").addEventListener("click", () => move(page + 1));
  at("at").addEventListener("change", () => move(Number(at("at").value) - 1));
  for (const box of document.querySelectorAll(".controls, .pager")) box.hidden = false;
  at("plain").hidden = true;
  take(0);
})();
