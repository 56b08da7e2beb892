// Sorting of tables, and one task at a time. Without it every task is on the page, in order. No text passes through here as markup.

// ------------------------------------------------------------------------------------------------------------ tables

// A click sorts by the column, the largest first, names from a to z; a second the other way round. What has no number stays last.
function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, body, heading, column));
  });
}

function sortBy(table, body, heading, column) {
  const first = column ? "descending" : "ascending";
  const other = column ? "ascending" : "descending";
  const way = heading.getAttribute("aria-sort") === first ? other : first;
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", way);
  body.append(...[...body.rows].map((row) => [key(row.cells[column]), row]).sort(([a], [b]) => order(a, b, way === "descending")).map(([, row]) => row));
}

const key = (cell) => (cell.tagName === "TH" ? cell.textContent : cell.dataset.sort === undefined ? null : Number(cell.dataset.sort));
function order(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const sign = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -sign : sign;
}

// ------------------------------------------------------------------------------------------------------- task by task

const chapters = [...document.querySelectorAll(".chapter")];
const links = [...document.querySelectorAll(".task-nav a")];

function show(chosen) {
  chapters.forEach((chapter) => { chapter.hidden = chosen !== null && chapter !== chosen; });
  links.forEach((link) => {
    const on = chosen === null ? link.dataset.all !== undefined : link.hash === `#${chosen.id}`;
    if (on) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}

// The address says what is shown: a task, a place inside one, or all of them. Other addresses leave the choice as it is.
function readAddress() {
  const target = location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null;
  if (target === null) return;
  if (target.id === "every-task") show(null);
  const chapter = target.closest(".chapter");
  if (chapter === null) return;
  show(chapter);
  target.scrollIntoView();
}

document.querySelectorAll("table[data-sortable]").forEach(sortable);
document.querySelectorAll("[data-needs-script]").forEach((node) => { node.hidden = false; });
if (chapters.length > 1) show(chapters[0]);
readAddress();
addEventListener("hashchange", readAddress);
