"use strict";
// Everything that an index holds comes into the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const form = $("form"), status = $("status"), results = $("results");
let about = { takes: [], labels: [], metric: "cosine" }, latest = 0, current = null;

const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};

async function fetched(address, options) {
  const response = await fetch(address, options).catch(() => { throw new Error("the server does not answer; is it still running?"); });
  const told = await response.json().catch(() => { throw new Error(`no answer of the search server (status ${response.status})`); });
  if (!response.ok) throw new Error(told.error);
  return told;
}

function kept(name, value) {
  const line = make("div", `${name}: `, "id");
  if (!/^https?:\/\//i.test(value)) line.append(value);
  else line.append(Object.assign(make("a", value), { href: value, target: "_blank", rel: "noopener noreferrer" }));
  return line;
}

function shown(hit, best, asked) {
  const item = make("li"), score = make("div", hit.score.toFixed(3), "score"), what = make("div", undefined, "what");
  if (about.metric === "cosine" && best > 0) {
    const bar = make("span", undefined, "bar");
    bar.style.width = `${Math.max(0, Math.min(1, hit.score)) * 100}%`;
    score.append(bar);
  }
  const { score: _, id, label, text, path, ...rest } = hit;
  const head = make("div", String(id), "id");
  if (label) head.append(make("span", label, "label"));
  if (String(id) === asked) head.append(make("span", "the item itself", "label"));
  what.append(head);
  if (about.items === "image" && path) {
    const picture = make("img");
    picture.alt = `${label ?? ""} ${id}`.trim();
    picture.loading = "lazy";
    picture.src = `api/picture?id=${encodeURIComponent(id)}`;
    picture.onerror = () => picture.remove();
    what.append(picture);
  }
  if (text) what.append(make("p", text));
  for (const [name, value] of Object.entries(rest)) if (value) what.append(kept(name, value));
  const like = make("button", "more like this");
  like.type = "button";
  like.setAttribute("aria-label", `more like this: ${id}`);
  like.onclick = () => ask({ id: String(id) });
  item.append(score, what, like);
  return item;
}

// wanted: {query}, {id} or {picture}; with the form's label and number of results.
async function ask(wanted, remember = true) {
  current = wanted;
  const mine = ++latest, parameters = new URLSearchParams();
  for (const name of ["query", "id"]) if (wanted[name]) parameters.set(name, wanted[name]);
  if (form.label.value) parameters.set("label", form.label.value);
  parameters.set("k", form.k.value || "10");
  if (wanted.id) { form.query.value = ""; form.like.value = wanted.id; }
  if (!wanted.picture) form.picture.value = "";
  if (remember && !wanted.picture) history.pushState(null, "", `?${parameters}`);
  status.className = "";
  status.textContent = "searching …";
  try {
    const picture = wanted.picture && { method: "POST", body: wanted.picture, headers: { "Content-Type": wanted.picture.type } };
    const told = await fetched(`api/search?${parameters}`, picture || {});
    if (mine !== latest) return;
    const hits = told.results[0].hits;
    results.replaceChildren(...hits.map((hit) => shown(hit, hits[0].score, wanted.id)));
    const kind = told.how.way === "exact" ? "every item compared" : "approximate";
    status.textContent = `${hits.length || "no"} ${hits.length === 1 ? "result" : "results"}${wanted.id ? ` like ${wanted.id}` : ""} in ${told.ms.toFixed(1)} ms, ${kind}`;
  } catch (error) {
    if (mine !== latest) return;
    results.replaceChildren();
    status.className = "bad";
    status.textContent = error.message;
  }
}

function asked() {
  const parameters = new URLSearchParams(location.search);
  form.query.value = parameters.get("query") ?? "";
  const label = parameters.get("label") ?? "";
  if (label && ![...form.label.options].some((each) => each.value === label)) form.label.add(new Option(label, label));  // of too many to be listed, or wrong
  if (label) $("class").hidden = false;
  form.label.value = label;
  if (parameters.get("k")) form.k.value = parameters.get("k");
  const wanted = { query: parameters.get("query"), id: parameters.get("id") };
  if (wanted.query || wanted.id) return ask(wanted, false);
  ++latest;  // back where nothing was asked
  current = null;
  results.replaceChildren();
  status.className = status.textContent = "";
}

async function start() {
  about = await fetched("api/about");
  document.title = `Search ${about.index}`;
  $("name").textContent = about.index;
  const recall = about.recall === null ? "every item compared" : `recall ${about.recall.toFixed(3)}`;
  $("about").textContent = `${about.count.toLocaleString("en")} items, ${about.dim} dimensions, ${about.metric}; ${about.factory}, ${recall}`
    + (about.encoder ? `; encoder ${about.encoder}` : "; no encoder: asked by items here, by vectors through the API");
  $("text").hidden = !about.takes.includes("text");
  $("item").hidden = about.takes.length > 0;
  $("image").hidden = !about.takes.includes("image");
  $("class").hidden = !about.labels.length;
  form.label.append(...about.labels.map((label) => make("option", label)));
  form.onsubmit = (event) => {
    event.preventDefault();
    const picture = form.picture.files[0], query = form.query.value.trim(), id = form.like.value.trim();
    if (query) ask({ query });
    else if (!about.takes.length && id) ask({ id });
    else if (picture) ask({ picture });
    else if (current) ask(current);
  };
  form.picture.onchange = () => { if (form.picture.files[0]) { form.query.value = ""; ask({ picture: form.picture.files[0] }); } };
  addEventListener("popstate", asked);
  await asked();
}

start().catch((error) => { status.className = "bad"; status.textContent = error.message; });
