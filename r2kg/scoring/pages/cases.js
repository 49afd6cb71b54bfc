"use strict";
const at = (id) => document.getElementById(id);
const list = at("studies");
const studies = [...list.children].map((node) => {
  const names = JSON.parse(node.dataset.names);
  const words = [".name bdi", ".text"].flatMap((part) => [...node.querySelectorAll(part)].map((one) => one.textContent));
  const numbers = { place: +node.dataset.place, hit: names.hit.length, missed: names.missed.length, invented: names.invented.length };
  for (const score of ["findingF1", "rougeL", "tripleF1"]) numbers[score] = Number(node.dataset[score]);
  return { node, names, numbers, words: words.join("\n").toLowerCase() };
});
const camel = (name) => name.replace(/-(.)/g, (_, letter) => letter.toUpperCase());
let highest = false;

function fits(study) {
  const outcome = at("outcome").value, finding = at("finding").value;
  const named = outcome ? study.names[outcome] : Object.values(study.names).flat();
  const found = finding ? named.includes(finding) : !outcome || named.length > 0;
  return found && study.words.includes(at("search").value.trim().toLowerCase());
}

function apply() {
  const by = camel(at("sort").value), sign = highest ? -1 : 1;
  studies.sort((one, other) => sign * (one.numbers[by] - other.numbers[by]) || one.numbers.place - other.numbers.place);
  let count = 0;
  for (const study of studies) {
    study.node.hidden = !fits(study);
    count += !study.node.hidden;
  }
  list.append(...studies.map((study) => study.node));
  at("count").textContent = count === studies.length ? `${count} studies` : `${count} of ${studies.length} studies`;
}

function press(button, on, yes, no) {
  button.setAttribute("aria-pressed", String(on));
  button.textContent = on ? yes : no;
}

function step(by) {
  const heads = studies.filter((study) => !study.node.hidden).map((study) => study.node.querySelector("summary"));
  const now = heads.findIndex((head) => head.parentNode.contains(document.activeElement));
  const next = heads[Math.min(heads.length - 1, Math.max(0, now + by))];
  if (next) next.focus();
}

at("controls").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["sort", "finding", "outcome"]) at(id).addEventListener("change", apply);
at("search").addEventListener("input", apply);
at("direction").addEventListener("click", () => {
  highest = !highest;
  press(at("direction"), highest, "highest first", "lowest first");
  apply();
});
at("all").addEventListener("click", () => {
  const open = at("all").getAttribute("aria-pressed") !== "true";
  press(at("all"), open, "close all", "open all");
  for (const study of studies) study.node.open = open;
});
list.addEventListener("click", (event) => {
  const study = event.target.closest(".study[open]");
  if (!study || !event.target.matches(".films img")) return;
  event.preventDefault();
  study.classList.toggle("large");
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "z") document.activeElement.closest(".study")?.classList.toggle("large");
  else if (event.key === "/") at("search").focus();
  else return;
  event.preventDefault();
});
apply();
