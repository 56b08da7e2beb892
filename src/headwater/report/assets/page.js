"use strict";
// The explorer. It decides nothing: every number, fold and mark comes from the data island.
// All text goes in through createTextNode, so a training row can never become markup.

const data = JSON.parse(document.getElementById("data").textContent);
const rows = new Map(Object.entries(data.rows));
const state = { query: 0, method: data.primary };
const EXCERPT = 260;
const HIDDEN = new RegExp(`[${data.hidden.map(([a, b]) => `\\u{${a.toString(16)}}-\\u{${b.toString(16)}}`).join("")}]`, "gu");

// ---------------------------------------------------------------------------------------------------- elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, legible(String(value)));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const legible = (text) => text.replaceAll("\r\n", "\n").replace(HIDDEN, (character) => `[${codePoint(character)}]`);

// Text from the data: hidden characters become marks, and the direction of the text ends where the text ends.
function foreign(text) {
  const node = h("bdi", { dir: "auto" });
  const clean = text.replaceAll("\r\n", "\n");
  let start = 0;
  for (const match of clean.matchAll(HIDDEN)) {
    node.append(clean.slice(start, match.index), h("span", { class: "hidden-char" }, codePoint(match[0])));
    start = match.index + match[0].length;
  }
  node.append(clean.slice(start));
  return node;
}

// ----------------------------------------------------------------------------------------------------- numbers

const minus = (text) => text.replaceAll("-", "−");
const isNumber = (value) => typeof value === "number";
const whole = (value) => value.toLocaleString("en-US");
const significant = (value, digits = 3) => (isNumber(value) ? minus(powered(rounded(value, digits))) : "–");
const rounded = (value, digits) => (Math.abs(value) >= 10 ** digits && Math.abs(value) < 1e7 ? whole(Math.round(value)) : String(Number(value.toPrecision(digits))));
const powered = (text) => text.replace(/e\+?(.+)$/, (_, exponent) => ` × 10${superscript(exponent)}`);
const fixed = (value, decimals) => (isNumber(value) ? minus(value.toFixed(decimals)) : "–");
const signed = (value, digits = 3) => (isNumber(value) && value > 0 ? `+${significant(value, digits)}` : significant(value, digits));
const rate = (value) => (isNumber(value) && value > 0 && value < 0.001 ? "< 0.001" : fixed(value, 3));
const superscript = (value) => minus(String(value)).replace(/[−0-9]/g, (c) => (c === "−" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));

function scoreUnit(method, scale) {
  const power = scale.exponent ? `10${superscript(scale.exponent)}` : "";
  return [power, method.unit].filter(Boolean).join(" ");
}

// -------------------------------------------------------------------------------------------------------- texts

// The beginning of a text, and the rest behind an expander that says how long it is.
function passage(clipped, kind) {
  if (clipped.length === 0) return null;
  if (clipped.length <= EXCERPT + 40) return h("p", { class: `passage ${kind}` }, foreign(clipped.text));
  const beginning = Array.from(clipped.text.slice(0, 2 * EXCERPT)).slice(0, EXCERPT).join("");
  return h("div", { class: `passage ${kind}` }, h("p", {}, foreign(beginning), "…"), expander(clipped));
}

function expander(clipped) {
  const shown = Array.from(clipped.text).length;
  const left = clipped.length - shown;
  const title = left > 0 ? `Show the first ${whole(shown)} of ${whole(clipped.length)} characters` : `Show all ${whole(clipped.length)} characters`;
  const node = h("details", {}, h("summary", {}, title));
  node.addEventListener("toggle", () => fillOnce(node, clipped, left), { once: true });
  return node;
}

function fillOnce(node, clipped, left) {
  node.append(h("div", { class: "whole", tabindex: "0" }, foreign(clipped.text)));
  if (left > 0) node.append(h("p", { class: "quiet" }, `${whole(left)} more characters are in the source, not in this page.`));
}

const oneLine = (clipped, length) => {
  const line = clipped.text.slice(0, 4 * length).replace(/\s+/g, " ").trim();
  return foreign(line.length > length ? `${Array.from(line).slice(0, length - 1).join("")}…` : line);
};
const place = (row) => foreign(row.row >= 0 ? `${row.source}:${row.row}` : row.source);

// --------------------------------------------------------------------------------------------------------- tabs

// A list of tabs after the ARIA pattern: one stop for the Tab key, arrows move and choose.
function tabs({ label, names, selected, vertical, panel, prefix, choose }) {
  const list = h("div", { role: "tablist", "aria-label": label, "aria-orientation": vertical ? "vertical" : "horizontal", class: `tabs ${prefix}-tabs` });
  names.forEach((content, i) => {
    const on = i === selected;
    const tab = h("button", { type: "button", role: "tab", id: `${prefix}-tab-${i}`, "aria-selected": String(on), "aria-controls": panel, tabindex: on ? "0" : "-1" }, content);
    tab.addEventListener("click", () => choose(i));
    list.append(tab);
  });
  list.addEventListener("keydown", (event) => step(event, names.length, selected, (i) => { choose(i); document.getElementById(`${prefix}-tab-${i}`).focus(); }));
  return list;
}

function step(event, count, at, go) {
  const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: count - 1 };
  if (!Object.hasOwn(moves, event.key)) return;
  event.preventDefault();
  go((moves[event.key] + count) % count);
}

// ------------------------------------------------------------------------------------------------- the query's text

const kindTitle = (kind) => (Object.hasOwn(data.kinds, kind) ? data.kinds[kind] : null);
const badge = (name, title, kind = name) => h("span", { class: `badge badge-${kind}`, title }, name);

const mark = (name) => s("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", focusable: "false" }, data.marks[name].map(([tag, attributes]) => s(tag, attributes)));
const statusMark = (name, word) => h("span", { class: `status status-${name}` }, mark(name), " ", h("span", {}, word));

// Whether the list below can be believed, and what decided it.
function verdictPart(verdict) {
  const reasons = verdict.reasons.map((reason) => h("li", {}, statusMark(reason.mark, reason.side), " ", foreign(reason.because)));
  return h("div", { class: `query-verdict finding-${verdict.mark}` },
    h("p", {}, h("strong", {}, "Verdict: "), statusMark(verdict.mark, verdict.word), verdict.probability ? h("span", { class: "probability" }, ` ${verdict.probability}`) : null),
    h("p", {}, verdict.meaning),
    reasons.length ? h("ul", { class: "reasons" }, reasons) : null);
}

function queryText(query) {
  const answer = query.response_tokens.length ? tokenLine(query) : foreign(query.response.text);
  const question = query.prompt.length ? passage(query.prompt, "prompt") : query.prompt_tokens.map((token) => foreign(token.text));
  return h("div", { class: "exchange" },
    h("div", {}, h("h4", {}, "Prompt"), question),
    h("div", {}, h("h4", {}, "Response"), answer),
    query.alternative ? h("div", {}, h("h4", {}, "Contrasted with"), passage(query.alternative, "response")) : null);
}

function tokenLine(query) {
  const detail = h("p", { class: "token-detail quiet", role: "status" }, "Point at a token, or move to it with the arrow keys, to read its numbers.");
  const line = h("p", { class: "tokens", role: "group", "aria-label": "Tokens of the response" });
  line.append(...query.response_tokens.map((token, i) => tokenMark(token, query.contribution_max, i)));
  const show = (event) => describeToken(event.target.closest(".token"), query, detail);
  for (const type of ["mouseover", "focusin", "click"]) line.addEventListener(type, show);
  line.addEventListener("keydown", (event) => moveToken(event, line));
  return h("div", {}, line, detail, tokenLegend(query), tokenTable(query));
}

function tokenMark(token, largest, i) {
  const node = h("span", { class: `token ${signClass(token.contribution)}`, title: tokenNumbers(token), tabindex: i ? "-1" : "0", "data-token": i }, foreign(token.text));
  if (isNumber(token.contribution) && largest > 0) node.style.setProperty("--strength", String(Math.abs(token.contribution) / largest));
  return node;
}

const signClass = (value) => (!isNumber(value) || value === 0 ? "" : value > 0 ? "positive" : "negative");
const probability = (logProb) => (isNumber(logProb) ? ` (p = ${significant(Math.exp(logProb), 2)})` : "");

function tokenNumbers(token) {
  const contribution = isNumber(token.contribution) ? signed(token.contribution) : "not computed";
  return token.target ? `log-probability ${significant(token.log_prob)}${probability(token.log_prob)}; contribution ${contribution}` : "not a target: it is given, not predicted";
}

function describeToken(mark, query, detail) {
  if (!mark) return;
  const token = query.response_tokens[Number(mark.dataset.token)];
  detail.replaceChildren("Token ", h("code", {}, foreign(token.text)), ` : ${tokenNumbers(token)}`);
}

function moveToken(event, line) {
  const at = Array.from(line.children).indexOf(document.activeElement);
  step(event, line.children.length, at, (i) => {
    line.children[at].tabIndex = -1;
    line.children[i].tabIndex = 0;
    line.children[i].focus();
  });
}

function tokenLegend(query) {
  if (!isNumber(query.contribution_max)) return h("p", { class: "quiet" }, "No token contributions were computed for this query, so no token is coloured.");
  const limit = significant(query.contribution_max, 2);
  return h("p", { class: "legend" }, `−${limit} `, h("span", { class: "ramp", role: "img", "aria-label": "from negative through zero to positive" }), ` +${limit} `,
    h("span", { class: "quiet" }, `each token’s part of ${data.primary}’s score for the row in first place`));
}

function tokenTable(query) {
  const body = query.response_tokens.map((token) => h("tr", {}, h("td", {}, h("code", {}, foreign(token.text))), cell(significant(token.log_prob)), cell(signed(token.contribution))));
  const head = headings([["Token"], ["Log-probability", "number"], ["Contribution", "number"]]);
  return h("details", { class: "print-hide" }, h("summary", {}, "The same as a table"), h("div", { class: "scroll" }, h("table", { class: "plain" }, head, h("tbody", {}, body))));
}

// ------------------------------------------------------------------------------------------------- ranked examples

const cell = (content, label) => h("td", { class: "number", "data-label": label }, content);
const headings = (names) => h("thead", {}, h("tr", {}, names.map(([name, kind, title]) => h("th", { scope: "col", class: kind, title }, name))));

const COLUMNS = {
  score: "The estimated effect, ± its standard error where the method has one (an error that comes from the sketch).",
  z: "How far this score lies above the row’s own mean over reference queries, in standard deviations. A row that scores high for every query has a small z.",
  q: "The share of false finds to expect if all rows with a q this small are believed (Benjamini-Hochberg over all rows).",
};

function rankedTable(name, entries, scale, method) {
  if (!entries.length) return h("p", { class: "quiet" }, `No ${name.toLowerCase()}.`);
  const unit = scoreUnit(method, scale);
  const chart = h("span", { class: "visually-hidden" }, "Chart");
  const head = headings([["#", "number"], [unit ? `Score, ${unit}` : "Score", "number", COLUMNS.score], [chart], ["z", "number", COLUMNS.z], ["q", "number", COLUMNS.q], ["Training row"]]);
  const body = entries.map((entry) => rankedRow(entry, scale));
  return h("table", { class: "ranked stack", "aria-label": `${name} by ${method.name}` }, head, h("tbody", {}, body));
}

function rankedRow(entry, scale) {
  return h("tr", {},
    h("th", { scope: "row", class: "number rank" }, String(entry.rank)),
    cell(scoreText(entry, scale), "Score"),
    h("td", { class: "chart" }, bar(entry, scale)),
    cell(fixed(entry.z, 2), "z"),
    cell(rate(entry.q), "q"),
    h("td", { class: "row" }, rowText(entry, scale)));
}

function scoreText(entry, scale) {
  const factor = 10 ** -scale.exponent;
  const print = (value) => fixed(isNumber(value) ? value * factor : value, scale.decimals);
  const error = isNumber(entry.standard_error) ? h("span", { class: "error" }, ` ± ${print(entry.standard_error)}`) : null;
  return [print(entry.score), error];
}

function bar(entry, scale) {
  const width = scale.high - scale.low || 1;
  const at = (value) => `${(100 * (value - scale.low)) / width}%`;
  const from = Math.min(0, entry.score ?? 0);
  const reach = Math.abs(entry.score ?? 0);
  const marks = [s("rect", { x: at(from), y: 5, width: `${(100 * reach) / width}%`, height: 10, rx: 1.5, class: signClass(entry.score) })];
  if (isNumber(entry.standard_error)) marks.push(...whisker(entry, at));
  marks.push(s("line", { x1: at(0), x2: at(0), y1: 0, y2: 20, class: "axis" }));
  return s("svg", { class: "bar-chart", width: "100%", height: 20, role: "img", "aria-label": `score ${significant(entry.score)}` }, marks);
}

function whisker(entry, at) {
  const reach = data.interval * entry.standard_error;
  const [low, high] = [at(entry.score - reach), at(entry.score + reach)];
  const line = (x1, x2, y1, y2) => s("line", { x1, x2, y1, y2, class: "whisker" });
  return [line(low, high, 10, 10), line(low, low, 6.5, 13.5), line(high, high, 6.5, 13.5)];
}

function rowText(entry, scale) {
  const row = rows.get(entry.id);
  const parts = [entry.tokens ? rowTokens(entry.tokens) : null, entry.near.length ? nearDuplicates(entry, scale) : null];
  return [passage(row.prompt, "prompt"), passage(row.response, "response"), rowFacts(entry, row), ...parts];
}

function rowTokens(tokens) {
  const marks = tokens.map((token) => {
    const node = h("span", { class: `token ${signClass(token.value)}`, title: signed(token.value) }, foreign(token.text));
    node.style.setProperty("--strength", String(token.strength));
    return node;
  });
  const note = "What reading each token added to this row’s score: the model reads a token and predicts the next, so the one that was taught stands after the one that is marked.";
  return h("details", { class: "row-tokens" }, h("summary", {}, "Its score by token"), h("p", { class: "tokens" }, marks), h("p", { class: "quiet" }, note));
}

function rowFacts(entry, row) {
  const tokens = isNumber(row.n_tokens) ? `${whole(row.n_tokens)} tokens, ${whole(row.n_loss_tokens ?? 0)} in the loss` : null;
  const parts = [place(row), isNumber(row.label) ? `label ${row.label}` : null, isNumber(row.loss) ? `loss ${significant(row.loss)}` : null, tokens].filter(Boolean);
  return h("p", { class: "source" }, parts.flatMap((part, i) => (i ? [" · ", part] : [part])), " ", rowMarks(entry, row));
}

function rowMarks(entry, row) {
  const hub = `Rank ${entry.rank} by score but ${whole(entry.hub_rank ?? 0)} by z: this row scores like this for every query, so it says little about this one.`;
  return [
    row.planted ? badge("planted", "This row was put in the data as a known cause.") : null,
    entry.hub ? badge(`hub: #${whole(entry.hub_rank)} by z`, hub, "hub") : null,
    row.copies > 1 ? badge(`${whole(row.copies)} copies`, "Rows with the same tokens", "copies") : null,
  ].filter(Boolean).flatMap((mark) => [mark, " "]);
}

function nearDuplicates(entry, scale) {
  const title = entry.near.length === 1 ? "1 near-duplicate" : `${whole(entry.near.length)} near-duplicates`;
  return h("details", {}, h("summary", {}, title), h("ul", { class: "near" }, entry.near.map((near) => nearRow(near, scale))));
}

function nearRow(near, scale) {
  const row = rows.get(near.id);
  const rank = isNumber(near.rank) ? `#${near.rank}, score ${fixed(near.score === null ? null : near.score * 10 ** -scale.exponent, scale.decimals)}: ` : "";
  return h("li", {}, rank, row ? [oneLine(row.prompt, 90), " → ", oneLine(row.response, 90), " ", h("span", { class: "source" }, place(row))] : h("code", {}, foreign(near.id)));
}

function glossary(method) {
  const terms = [["Score", COLUMNS.score], ["Bar", "The score; the whisker is its 95 % interval (1.96 standard errors each way)."], ["z", COLUMNS.z], ["q", COLUMNS.q],
    ["Hub", "A row ranked far higher by its score than by z."], ["Loss", "The sum over the row’s loss tokens, in nats."]];
  const provenance = method.provenance ? h("details", {}, h("summary", {}, `How ${method.name} was computed`), h("pre", {}, foreign(method.provenance))) : null;
  return h("div", { class: "print-hide" }, h("details", {}, h("summary", {}, "What the columns mean"), h("dl", { class: "glossary" }, terms.map(([t, d]) => h("div", {}, h("dt", {}, t), h("dd", {}, d))))), provenance);
}

// --------------------------------------------------------------------------------------------- methods side by side

function comparisonPart(query) {
  const found = query.comparison;
  if (!found.methods.length) return null;
  return h("section", { class: "comparison" }, h("h3", {}, "Do other methods find the same rows?"), h("p", {}, found.sentence),
    h("p", { class: "quiet" }, `The rank that each method gives a row, where it is among its first ${data.top}:`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows by method" }, rankMatrix(found)),
    found.left_out ? h("p", { class: "quiet" }, `${whole(found.left_out)} more rows, found by fewer methods, are not shown.`) : null,
    h("h4", {}, `Rows in common among the first ${data.top}`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Overlap of methods" }, overlapMatrix(found)));
}

function rankMatrix(found) {
  const head = headings([["Training row"], ...found.methods.map((name) => [name, "number"])]);
  const body = found.rows.map(({ id, ranks }) => h("tr", {}, h("th", { scope: "row" }, matrixLabel(rows.get(id))), ranks.map(rankCell)));
  const total = found.planted ? h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "Planted rows found"), found.planted.map((n, i) => cell(`${n} of ${found.sizes[i]}`)))) : null;
  return h("table", { class: "matrix" }, head, h("tbody", {}, body), total);
}

const matrixLabel = (row) => h("span", { class: "clip" }, row.planted ? [badge("planted", "This row was put in the data as a known cause."), " "] : "", oneLine(row.prompt, 60), " → ", oneLine(row.response, 60));

function rankCell(rank) {
  const node = h("td", { class: isNumber(rank) ? "number heat" : "number empty" }, isNumber(rank) ? String(rank) : "·");
  if (isNumber(rank)) node.style.setProperty("--strength", String(1 - (rank - 1) / (data.top + 2)));
  return node;
}

function overlapMatrix(found) {
  const head = headings([["Method"], ...found.methods.map((name) => [name, "number"])]);
  const body = found.overlap.map((counts, i) => h("tr", {}, h("th", { scope: "row" }, found.methods[i]), counts.map((n, j) => overlapCell(n, i === j, found.sizes[i]))));
  return h("table", { class: "matrix" }, head, h("tbody", {}, body));
}

function overlapCell(count, same, size) {
  const node = h("td", { class: same ? "number empty" : "number heat" }, same ? "–" : String(count));
  if (!same) node.style.setProperty("--strength", String(size ? count / size : 0));
  return node;
}

// ------------------------------------------------------------------------------------------------------- the explorer

const queryLabel = (query) => [h("span", { class: "tab-name" }, foreign(query.id)), query.kind && query.kind !== query.id ? badge(query.kind, kindTitle(query.kind)) : null,
  data.audited ? h("span", { class: `tab-verdict status status-${query.verdict.mark}` }, mark(query.verdict.mark), h("span", { class: "visually-hidden" }, query.verdict.word)) : null,
  h("span", { class: "tab-text" }, oneLine(query.prompt, 70))];
const methodLabel = (method) => [method.name, method.name === data.primary ? [" ", h("span", { class: "tab-note" }, "primary")] : null];

function queryPanel(query) {
  const value = isNumber(query.measure_value) ? `${significant(query.measure_value)} ${data.measure.unit ?? ""}` : "not computed";
  const head = h("div", { class: "panel-head" }, h("h3", {}, foreign(query.id), " ", query.kind && query.kind !== query.id ? badge(query.kind, kindTitle(query.kind)) : null),
    h("p", { class: "measure" }, `${data.measure.name.replaceAll("_", " ")} `, h("strong", {}, value)));
  const hint = kindTitle(query.kind) ? h("p", { class: "quiet" }, kindTitle(query.kind)) : null;
  return [head, hint, queryText(query), verdictPart(query.verdict), h("h3", {}, "Training rows, ranked"), methodTabs(query), methodPanel(query), comparisonPart(query)];
}

const available = (query) => data.methods.filter((method) => Object.hasOwn(query.ranked, method.name));
const currentMethod = (query) => available(query).find((method) => method.name === state.method) ?? available(query)[0];

function methodTabs(query) {
  const methods = available(query);
  return tabs({ label: "Methods", names: methods.map(methodLabel), selected: methods.indexOf(currentMethod(query)), panel: "method-panel", prefix: "method", choose: (i) => go(state.query, methods[i].name) });
}

function methodPanel(query) {
  const method = currentMethod(query);
  if (!method) return h("p", {}, "No method has scored this query.");
  const ranked = query.ranked[method.name];
  const unit = method.unit ? `Its scores are in ${method.unit}.` : "It only ranks: its numbers have no unit.";
  return h("div", { role: "tabpanel", id: "method-panel", "aria-labelledby": `method-tab-${available(query).indexOf(method)}` },
    h("p", { class: "quiet" }, `${method.summary.replace(/\.?\s*$/, ".")} ${unit}`),
    h("h4", {}, "Proponents ", h("span", { class: "quiet" }, "pushed the model towards this output")), rankedTable("Proponents", ranked.proponents, ranked.scale, method),
    h("h4", {}, "Opponents ", h("span", { class: "quiet" }, "pushed it away")), rankedTable("Opponents", ranked.opponents, ranked.scale, method),
    glossary(method));
}

function draw() {
  const app = document.getElementById("app");
  const query = data.queries[state.query];
  if (!query) return app.replaceChildren(h("p", {}, "This trace has no queries."));
  const list = tabs({ label: "Queries", names: data.queries.map(queryLabel), selected: state.query, vertical: true, panel: "query-panel", prefix: "query", choose: (i) => go(i, state.method) });
  const panel = h("div", { role: "tabpanel", id: "query-panel", "aria-labelledby": `query-tab-${state.query}` }, queryPanel(query));
  return app.replaceChildren(list, panel);
}

function go(query, method) {
  Object.assign(state, { query, method });
  const kept = document.querySelector(".query-tabs")?.scrollTop ?? 0;
  const focused = document.activeElement?.id;
  draw();
  document.querySelector(".query-tabs").scrollTop = kept;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  history.replaceState(null, "", `#query-${query}/${encodeURIComponent(method)}`);
}

// "#query-1" or "#query-1/grad_dot": a link to what is on the screen.
function readAddress() {
  const match = /^#query-(\d+)(?:\/(.+))?$/.exec(location.hash);
  if (!match || !data.queries[Number(match[1])]) return;
  Object.assign(state, { query: Number(match[1]), method: match[2] ? new URLSearchParams(`m=${match[2]}`).get("m") : state.method });
  draw();
  document.getElementById("explorer").scrollIntoView();
}

draw();
readAddress();
addEventListener("hashchange", readAddress);
