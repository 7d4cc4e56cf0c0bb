// The page: fleets, and one fleet's balance, bill, alerts and devices while they change.

import { follow } from "/page/stream.js";

const KEY = "fleetmeter.key";
const TENANT = "fleetmeter.tenant";
const BILL_PAUSE_MS = 2_000;
const LOG_LINES_MAX = 100;

const byId = (id) => document.getElementById(id);
let shown = new AbortController(); // what is on the page; aborted when something else is

class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? `the server answered ${status}`);
    this.status = status;
  }
}

function headers() {
  const tenant = sessionStorage.getItem(TENANT);
  return {
    Authorization: `Bearer ${sessionStorage.getItem(KEY)}`,
    ...(tenant ? { "Fleetmeter-Tenant": tenant } : {}),
  };
}

async function get(path, signal) {
  const response = await fetch(`/v1${path}`, { headers: headers(), signal, cache: "no-store" });
  const answer = await response.json();
  if (!response.ok) throw new Problem(response.status, answer);
  return answer;
}

// Elements ---------------------------------------------------------------------------------------

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function row(cells) {
  const made = element("tr");
  cells.forEach(([name, content, kind], place) => {
    const cell = element(place === 0 ? "th" : "td", undefined, place === 0 ? { scope: "row" } : { "data-name": name });
    if (kind) cell.className = kind;
    cell.append(content ?? "–");
    made.append(cell);
  });
  return made;
}

function timeOf(instant) {
  const made = element("time", new Date(instant).toLocaleString());
  made.dateTime = instant;
  return made;
}

function show(view) {
  for (const id of ["enter", "fleets", "fleet"]) byId(id).hidden = id !== view;
  byId("leave").hidden = view === "enter";
}

function complain(error) {
  if (error.name === "AbortError") return;
  byId("problem").textContent = error.message;
  byId("problem").hidden = false;
  if (error.status === 401) leave();
}

function calm() {
  byId("problem").hidden = true;
  byId("problem").textContent = "";
}

// Amounts ----------------------------------------------------------------------------------------

/** Write a whole number of a unit so that people can read it; octets in powers of 1000. */
export function quantityText(quantity, unit) {
  if (unit !== "octet") return `${Number(quantity).toLocaleString()} ${unit}${quantity === 1 ? "" : "s"}`;
  const names = ["octets", "kB", "MB", "GB", "TB", "PB"];
  let amount = Number(quantity);
  let place = 0;
  while (Math.abs(amount) >= 1000 && place < names.length - 1) {
    amount /= 1000;
    place += 1;
  }
  return `${amount.toLocaleString(undefined, { maximumFractionDigits: 2 })} ${names[place]}`;
}

function lineText(line) {
  const names = { usage: line.meter, fee: line.name };
  return `${line.kind.replaceAll("_", " ")}${names[line.kind] ? `: ${String(names[line.kind]).replaceAll("_", " ")}` : ""}`;
}

// Views ------------------------------------------------------------------------------------------

/** Load pages of a list into a table; `more` is the button that loads the next. */
function pages(path, body, more, rowOf, signal) {
  let cursor = null;
  body.replaceChildren();
  const load = async () => {
    const page = await get(`${path}limit=100${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`, signal);
    const first = body.children.length;
    body.append(...page.items.map(rowOf));
    cursor = page.next_cursor;
    const focused = document.activeElement === more;
    more.hidden = cursor === null;
    if (focused && more.hidden) body.children[first]?.querySelector("a")?.focus();
  };
  more.onclick = () => load().catch(complain);
  return load();
}

async function showFleets(signal) {
  show("fleets");
  byId("connection").textContent = "";
  await pages("/fleets?", byId("fleet-rows"), byId("more-fleets"), (fleet) => row([
    ["Fleet", element("a", fleet.fleet_id, { href: `#/fleets/${encodeURIComponent(fleet.fleet_id)}` })],
    ["Name", fleet.name],
    ["Devices", fleet.devices.toLocaleString()],
    ["Currency", fleet.currency],
    ["Bill cycle", `${fleet.cycle}, ${fleet.time_zone}`],
  ]), signal);
  byId("fleets-heading").focus();
}

let balanceVersion = -1;

function showBalance(balance) {
  if (balance.version < balanceVersion) return; // an older answer that came later
  balanceVersion = balance.version;
  byId("cycle").textContent = `From ${new Date(balance.cycle.start).toLocaleString()} to ${new Date(balance.cycle.end).toLocaleString()}.`;
  byId("no-pools").hidden = balance.pools.length > 0;
  byId("pools").replaceChildren(...balance.pools.map((pool) => {
    const { granted, used, left } = pool.pool;
    const title = `${pool.meter}: ${pool.name}${pool.plan_id ? ` (${pool.plan_id})` : ""}`;
    const item = element("li");
    const bar = element("meter", undefined, { min: 0, max: Math.max(granted, 1), value: left, low: granted / 5, "aria-label": `left of ${title}` });
    item.append(
      element("h3", title),
      element("p", `${quantityText(left, pool.unit)} left`, { class: "left", "data-left": left }),
      bar,
      element("p", `${quantityText(used, pool.unit)} used of ${quantityText(granted, pool.unit)}`, { class: "note" }),
    );
    return item;
  }));
}

async function showBill(fleetId, signal) {
  try {
    const bill = await get(`/fleets/${fleetId}/bill`, signal);
    byId("bill-caption").textContent = `In ${bill.currency}, as of ${new Date(bill.as_of).toLocaleString()}`;
    byId("bill-rows").replaceChildren(...bill.lines.map((line) => row([
      ["For", lineText(line)],
      ["Plan", line.plan_name ?? line.plan_id],
      ["Amount", line.amount ?? line.exact_amount, "number"],
    ])));
    byId("bill-total").textContent = `${bill.total} ${bill.currency}`;
    byId("bill").hidden = false;
    byId("no-bill").hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem) || error.status === 401) throw error;
    byId("bill").hidden = true;
    byId("no-bill").hidden = false;
    byId("no-bill").textContent = error.message;
  }
}

function alertLine(alert) {
  const item = element("li");
  const of = alert.device_id ? `device ${alert.device_id}` : "the fleet";
  const meter = alert.meter ? ` ${alert.meter}` : "";
  item.append(timeOf(alert.raised_at), `${alert.name}: ${of} is at ${alert.value} of ${alert.limit} ${alert.unit}${meter}${alert.cleared_at ? " (over)" : ""}`);
  return item;
}

async function showAlerts(fleetId, signal) {
  const page = await get(`/alerts?fleet=${fleetId}&limit=20`, signal);
  byId("alerts").replaceChildren(...page.items.map(alertLine));
  byId("no-alerts").hidden = page.items.length > 0;
}

function note(instant, text) {
  const item = element("li");
  item.append(timeOf(instant), text);
  const log = byId("happening");
  log.prepend(item);
  while (log.children.length > LOG_LINES_MAX) log.lastElementChild.remove();
}

function deviceRow(device) {
  const made = row([
    ["Device", device.device_id],
    ["State", device.state],
    ["Plan", device.subscription?.plan_id],
    ["ICCID", device.iccid],
  ]);
  made.dataset.device = device.device_id;
  return made;
}

/** Let something run at most once in a while, and once more for what came meanwhile. */
function seldom(work, pauseMs, signal) {
  let waiting = null;
  let last = 0;
  return () => {
    if (waiting !== null) return;
    waiting = setTimeout(() => {
      waiting = null;
      last = Date.now();
      if (!signal.aborted) work().catch(complain);
    }, Math.max(0, last + pauseMs - Date.now()));
  };
}

async function showFleet(id, signal) {
  const fleetId = encodeURIComponent(id);
  const fleet = await get(`/fleets/${fleetId}`, signal);
  balanceVersion = -1;
  for (const list of ["pools", "bill-rows", "alerts", "happening", "device-rows"]) byId(list).replaceChildren();
  for (const part of ["bill", "no-bill", "no-pools", "no-alerts"]) byId(part).hidden = true;
  byId("fleet-heading").textContent = fleet.name === id ? id : `${fleet.name} (${id})`;
  show("fleet");
  byId("fleet-heading").focus();

  const devices = () => pages(`/devices?fleet=${fleetId}&`, byId("device-rows"), byId("more-devices"), deviceRow, signal);
  const billAgain = seldom(() => showBill(fleetId, signal), BILL_PAUSE_MS, signal);
  const alertsAgain = seldom(() => showAlerts(fleetId, signal), BILL_PAUSE_MS, signal);
  const all = () => Promise.all([showBill(fleetId, signal), showAlerts(fleetId, signal), devices()]);
  const told = (topic, data) => {
    if (topic === "balance") {
      showBalance(data);
      billAgain();
    } else if (topic === "alert") {
      note(data.created_at, `${data.kind}${data.device_id ? `: ${data.device_id}` : ""}`);
      alertsAgain();
    } else if (topic === "event") {
      note(data.created_at, `${data.kind}${data.device_id ? `: ${data.device_id}` : ""}`);
      if (data.kind.startsWith("bill.")) billAgain();
    } else if (topic === "command") {
      note(data.acknowledged_at ?? data.sent_at ?? data.created_at, `${data.device_id}: ${data.kind} is ${data.state}`);
    } else if (topic === "device_state") {
      note(data.recorded_at, `${data.device_id} is ${data.state} from ${new Date(data.from).toLocaleString()}`);
      const known = [...byId("device-rows").children].find((each) => each.dataset.device === data.device_id);
      if (known && new Date(data.from) <= Date.now()) known.children[1].textContent = data.state;
    } else if (topic === "reset") {
      all().catch(complain);
    }
  };
  // The stream first: what changes while the lists are read is told after them.
  follow(`/v1/fleets/${fleetId}/stream`, {
    headers: headers(),
    signal,
    told,
    connection: (text) => { byId("connection").textContent = text; },
    refused: (document) => complain(new Problem(document.status, document)),
  });
  await all();
}

// What is shown follows the address -----------------------------------------------------------------

function route() {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  calm();
  if (sessionStorage.getItem(KEY) === null) {
    show("enter");
    byId("connection").textContent = "";
    byId("key").focus();
    return;
  }
  const named = /^#\/fleets\/([^/]+)$/.exec(location.hash);
  const work = named ? showFleet(decodeURIComponent(named[1]), signal) : showFleets(signal);
  work.catch((error) => { if (!signal.aborted) complain(error); });
}

function leave() {
  const text = byId("problem").textContent;
  sessionStorage.removeItem(KEY);
  sessionStorage.removeItem(TENANT);
  route();
  if (text) {
    byId("problem").textContent = text;
    byId("problem").hidden = false;
  }
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  sessionStorage.setItem(TENANT, byId("tenant").value.trim());
  byId("key").value = "";
  route();
});
byId("leave").addEventListener("click", () => { calm(); leave(); });
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says what is shown
  byId("main").focus();
});
window.addEventListener("hashchange", route);
route();
