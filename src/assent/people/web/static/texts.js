"use strict";
/* Words of a text, in any script, and which of them two texts have in common. */
const Texts = (() => {
  const segmenter = window.Intl && Intl.Segmenter ? new Intl.Segmenter("en", { granularity: "word" }) : null;
  const RUNS = /[\p{L}\p{M}\p{N}_]+|[^\p{L}\p{M}\p{N}_\s]+/gu;
  const SEEN = /[\p{L}\p{M}\p{N}\p{P}\p{S}]/u, LETTER = /[\p{L}\p{N}]/u;
  const PIECE = /[^]{1,400}(?=[\s\p{P}])|[^]{1,400}/gu;  // a segmenter's time grows with the square of a text
  const MOST = 16e6;  // blocks of 32 words that are kept: 64 MB

  /* [start, end) of each word, of each sign beside words, of each emoji. */
  function words(text) {
    if (!segmenter) return [...text.matchAll(RUNS)].map((match) => [match.index, match.index + match[0].length]);
    const found = [];
    for (const piece of text.matchAll(PIECE)) {
      for (const { segment, index } of segmenter.segment(piece[0])) {
        const start = piece.index + index;
        if (SEEN.test(segment)) found.push([start, start + segment.length]);
      }
    }
    return found;
  }

  /* The same in code points, with signs that stand together as one. */
  function steps(text) {
    const found = [];
    let at = 0, points = 0, last = -1, sign = false;
    const count = (to) => { for (; at < to; points++) at += text.codePointAt(at) > 0xffff ? 2 : 1; return points; };
    for (const [start, end] of words(text)) {
      const letters = LETTER.test(text.slice(start, end));
      if (start === last && sign && !letters) found[found.length - 1][1] = count(end);
      else found.push([count(start), count(end)]);
      last = end;
      sign = !letters;
    }
    return found;
  }

  /* A longest common subsequence of two lists: the places of its members in each, or null where they are too long.
     A row of the usual table of lengths rises by 0 or 1 from column to column: it is kept as bits, 0 where it rises, and
     the next row is an addition (Crochemore et al. 2001). */
  function common(a, b) {
    const blocks = Math.ceil(b.length / 32);
    if ((a.length + 1) * blocks > MOST) return null;
    const masks = new Map();
    b.forEach((word, place) => {
      if (!masks.has(word)) masks.set(word, []);
      masks.get(word).push(place);
    });
    const rows = new Uint32Array((a.length + 1) * blocks).fill(0xffffffff, 0, blocks);
    const mask = new Uint32Array(blocks);
    a.forEach((word, row) => {
      const from = row * blocks, to = from + blocks, places = masks.get(word);
      if (!places) return void rows.copyWithin(to, from, to);
      for (const place of places) mask[place >>> 5] |= 1 << (place & 31);
      let carry = 0;
      for (let block = 0; block < blocks; block++) {
        const old = rows[from + block], sum = old + ((old & mask[block]) >>> 0) + carry;
        carry = sum > 0xffffffff ? 1 : 0;
        rows[to + block] = sum | (old & ~mask[block]);
      }
      for (const place of places) mask[place >>> 5] = 0;
    });
    const flat = (row, place) => (rows[row * blocks + (place >>> 5)] >>> (place & 31)) & 1;
    const firsts = new Set(), seconds = new Set();
    for (let i = a.length, j = b.length; i > 0 && j > 0;) {
      if (flat(i, j - 1)) j -= 1;
      else if (!flat(i - 1, j - 1)) i -= 1;
      else { firsts.add(i -= 1); seconds.add(j -= 1); }
    }
    return { firsts, seconds };
  }

  return { words, steps, common };
})();
