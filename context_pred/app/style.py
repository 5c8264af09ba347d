"""How the page looks and answers to the pointer and the keyboard: its CSS, and the JavaScript of its own pieces."""

from __future__ import annotations

CSS = """
.gradio-container { --cp-blue: #0072b2; --cp-green: #009e73; --cp-orange: #d55e00; --cp-row: 150px;
  --cp-soft: color-mix(in srgb, var(--body-text-color) 68%, transparent);
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --color-accent: var(--cp-blue); --primary-500: var(--cp-blue); --primary-600: #005a8e; --layout-gap: 12px;
  --checkbox-background-color-selected: var(--cp-blue); --checkbox-border-color-selected: var(--cp-blue);
  --checkbox-border-color-focus: var(--cp-blue); --link-text-color: var(--cp-blue);
  font-family: var(--font); }
.gradio-container.dark, .dark .gradio-container { --cp-blue: #56b4e9; --primary-600: #8ccdf2; }
.gradio-container .app { max-width: 1240px !important; }
.gradio-container main { width: 100%; }
.gradio-container .html-container { padding: 0; }
.gradio-container .row { column-gap: 24px; }
[id$="-said"]:not(:has(.cp-sentence)) { display: none; }
.cp-head { padding: 6px 0 2px; }
.cp-head h1 { font-size: 1.4rem; font-weight: 650; letter-spacing: -.01em; margin: 0; color: var(--body-text-color); }
.cp-head p, .cp-lead { margin: .3rem 0 0; color: var(--cp-soft); font-size: .92rem; line-height: 1.5;
  max-width: 120ch; }
.cp-lead { margin: 0 0 .2rem; }
.cp-head code { font-size: .9em; }
.cp-title { font-size: .84rem; font-weight: 600; margin: .3rem 0 0; color: var(--body-text-color); }
.cp-hint, .cp-empty { color: var(--cp-soft); font-size: .86rem; line-height: 1.45; }
.gradio-container .cp-hint { margin: .45rem 0 0; overflow-wrap: anywhere; }
.cp-empty { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 1.8rem 1.2rem;
  text-align: center; }
.cp-sentence { margin: 0; padding: .65rem .9rem; border-radius: 6px; font-size: .92rem; line-height: 1.45;
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere; }
.cp-wrong { border-left: 4px solid var(--cp-orange); }
.cp-picture, .cp-still { position: relative; display: inline-block; line-height: 0; max-width: 100%;
  vertical-align: top; }
.cp-picture { cursor: crosshair; touch-action: manipulation; }
.cp-picture img, .cp-still img { max-width: 100%; max-height: 380px; border-radius: 4px; display: block; }
.cp-picture:focus-visible, .cp-sheet button:focus-visible, .cp-game button:focus-visible {
  outline: 3px solid var(--cp-blue); outline-offset: 2px; }
.cp-point { position: absolute; width: 22px; height: 22px; margin: -11px 0 0 -11px; border-radius: 50%;
  border: 3px solid #fff; box-shadow: 0 0 0 2px #0072b2, inset 0 0 0 2px #0072b2; box-sizing: border-box;
  pointer-events: none; }
.cp-point[hidden] { display: none; }
.cp-frame { position: absolute; border: 2px solid #fff; box-shadow: 0 0 0 2px #0072b2; border-radius: 2px;
  pointer-events: none; box-sizing: border-box; }
.cp-frame.cp-found { box-shadow: 0 0 0 2px var(--cp-green); }
.cp-sheet { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 14px 12px; }
.cp-sheet li { margin: 0; min-width: 0; }
.cp-tile { width: calc(var(--ratio) * var(--cp-row)); max-width: 100%; }
.cp-tile .cp-still { display: block; height: var(--cp-row); overflow: hidden; border-radius: 4px; }
.cp-tile .cp-still img { width: 100%; height: 100%; max-height: none; object-fit: cover; }
.cp-sheet button { display: block; width: 100%; padding: 0; border: 0; cursor: pointer; border-radius: 4px; }
.cp-sheet button:hover img { filter: brightness(1.1); }
.cp-mark .cp-still { box-shadow: 0 0 0 3px var(--cp-blue); }
.cp-caption { display: flex; gap: .5em; align-items: baseline; margin-top: 6px; font-size: .8rem; line-height: 1.3;
  color: var(--cp-soft); }
.cp-caption b { color: var(--body-text-color); font-weight: 600; font-variant-numeric: tabular-nums; }
.cp-caption span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.cp-large { --cp-row: 210px; }
.cp-small .cp-sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)); gap: 6px; }
.cp-small .cp-tile { width: auto; }
.cp-small .cp-tile .cp-still { height: auto; aspect-ratio: 1; }
.cp-small .cp-caption { display: none; }
.cp-game { display: flex; flex-wrap: wrap; gap: 20px 32px; align-items: flex-start; padding-top: 4px; }
.cp-asked { flex: 1 1 240px; max-width: 320px; }
.cp-asked p { margin: 0 0 .8rem; line-height: 1.45; color: var(--body-text-color); }
.cp-asked > img { width: 128px; height: 128px; border-radius: 4px; display: block; margin-bottom: .9rem; }
.cp-board { flex: 0 1 384px; min-width: min(100%, 300px); display: grid; grid-template-columns: repeat(3, 1fr);
  gap: 8px; }
.cp-place { flex: 1 1 260px; max-width: 384px; }
.cp-place .cp-still { display: block; }
.cp-place .cp-still img { width: 100%; max-height: none; }
.cp-cell { position: relative; aspect-ratio: 1; border-radius: 6px; overflow: hidden; display: block; padding: 0;
  border: 2px solid var(--border-color-primary); box-sizing: border-box; }
.cp-game button.cp-cell { background: var(--background-fill-secondary); cursor: pointer; }
.cp-game button.cp-cell:hover { border-color: var(--cp-blue);
  background: color-mix(in srgb, var(--cp-blue) 14%, var(--background-fill-secondary)); }
.cp-cell img { width: 100%; height: 100%; display: block; object-fit: cover; }
.cp-center { border-color: transparent; }
.cp-said { background: color-mix(in srgb, var(--cp-blue) calc(var(--share) * 75%), var(--background-fill-secondary)); }
.cp-true { border: 4px solid var(--cp-green); }
.cp-false { border: 4px solid var(--cp-orange); }
.cp-tags { position: absolute; left: 5px; top: 5px; display: flex; flex-wrap: wrap; gap: 4px; }
.cp-tags i, .cp-share { font-style: normal; font-size: .76rem; line-height: 1; padding: 4px 6px; border-radius: 3px; }
.cp-tags i { background: #202020; color: #fff; }
.cp-share { position: absolute; right: 5px; bottom: 5px; background: #ffffffe0; color: #202020;
  font-variant-numeric: tabular-nums; }
.cp-game button.cp-next { font: inherit; font-weight: 600; padding: .55rem 1.2rem; border: 0; border-radius: 6px;
  cursor: pointer; background: #0072b2; color: #fff; margin-bottom: 1.1rem; }
.cp-game button.cp-next:hover { background: #005a8e; }
.cp-scores { list-style: none; margin: 0; padding: 0; font-size: .88rem; }
.cp-scores li { display: flex; justify-content: space-between; margin: 0 0 .6rem; padding-bottom: 8px;
  color: var(--body-text-color); --cp-rest: var(--border-color-primary);
  background: linear-gradient(var(--cp-bar), var(--cp-bar)) left bottom / calc(var(--share) * 100%) 4px no-repeat,
    linear-gradient(var(--cp-rest), var(--cp-rest)) left bottom / 100% 4px no-repeat; }
.cp-scores b { font-weight: 600; font-variant-numeric: tabular-nums; }
.cp-you { --cp-bar: var(--cp-green); } .cp-model { --cp-bar: var(--cp-blue); } .cp-chance { --cp-bar: #8a8a8a; }
@media (max-width: 640px) {
  .gradio-container { --cp-row: 112px; }
  .gradio-container .app { padding-left: 14px; padding-right: 14px; }
  .cp-large { --cp-row: 150px; }
  .cp-asked { display: contents; }
  .cp-asked > img { width: 96px; height: 96px; margin: 0; }
  .cp-asked > p, .cp-answer, .cp-scores { flex: 1 1 100%; margin: 0 !important; }
  .cp-game { gap: 14px; }
  .cp-board { order: 1; }
  .cp-answer, .cp-game button.cp-next, .cp-scores, .cp-place { order: 2; }
  .cp-answer p { margin: 0; }
  .cp-answer:empty { display: none; }
}
"""

PICTURE_JS = """
const place = (picture, x, y) => {
  picture.dataset.x = Math.min(Math.max(x, 0), 0.9999);
  picture.dataset.y = Math.min(Math.max(y, 0), 0.9999);
  const point = picture.querySelector('.cp-point');
  point.hidden = false;
  point.style.left = 100 * picture.dataset.x + '%';
  point.style.top = 100 * picture.dataset.y + '%';
};
const send = (picture) => trigger('point', {x: Number(picture.dataset.x), y: Number(picture.dataset.y)});
element.addEventListener('click', (event) => {
  const picture = event.target.closest('.cp-picture');
  if (!picture) return;
  const box = picture.querySelector('img').getBoundingClientRect();
  place(picture, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  send(picture);
});
element.addEventListener('keydown', (event) => {
  const picture = event.target.closest('.cp-picture');
  if (!picture) return;
  const step = event.shiftKey ? 0.1 : 0.02;
  const move = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
  if (move) place(picture, Number(picture.dataset.x) + move[0], Number(picture.dataset.y) + move[1]);
  else if (event.key === 'Enter' || event.key === ' ') { place(picture, Number(picture.dataset.x),
    Number(picture.dataset.y)); send(picture); }
  else return;
  event.preventDefault();
});
"""

SHEET_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-choice]');
  if (button) trigger('choice', {number: Number(button.dataset.choice)});
});
"""

BOARD_JS = """
let answered = false;
element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-cell]');
  if (cell) { answered = true; trigger('guess', {position: Number(cell.dataset.cell)}); }
  if (event.target.closest('[data-next]')) { answered = true; trigger('following', {}); }
});
watch('value', () => {
  if (!answered) return;
  answered = false;
  const next = element.querySelector('[data-next]') || element.querySelector('[data-cell]');
  if (next) next.focus();
});
"""
