// Reads a fleet's stream with fetch, which, unlike EventSource, can send the key in a header.

const HEARTBEAT_MS = 45_000; // three heartbeats without a word: the connection is taken for dead
const PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 30_000;

/** Cut the text of a stream into messages; yields {topic, data, id}. */
export async function* messagesOf(chunks) {
  let text = "";
  let message = { topic: "message", data: "", id: null };
  for await (const chunk of chunks) {
    text += chunk;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line === "") {
        yield message;
        message = { topic: "message", data: "", id: null };
        continue;
      }
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "event") message.topic = value;
      else if (name === "data") message.data += value;
      else if (name === "id") message.id = value;
    }
  }
}

async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Follow a stream until `signal` aborts: it is opened again where it was left. */
export async function follow(url, { headers, signal, told, connection, refused }) {
  let last = null;
  let pause = PAUSE_MS;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    signal.addEventListener("abort", abort);
    let alive = setTimeout(abort, HEARTBEAT_MS);
    try {
      const resumed = last === null ? {} : { "Last-Event-ID": last };
      const response = await fetch(url, {
        headers: { ...headers, ...resumed }, signal: attempt.signal, cache: "no-store",
      });
      if (response.status === 401 || response.status === 403 || response.status === 404) {
        refused(await response.json());
        return;
      }
      if (!response.ok) throw new Error(`answered ${response.status}`);
      connection("Live");
      for await (const message of messagesOf(chunksOf(response))) {
        clearTimeout(alive);
        alive = setTimeout(abort, HEARTBEAT_MS);
        if (message.topic !== "end") pause = PAUSE_MS;
        if (message.id !== null) last = message.id;
        if (message.data !== "") told(message.topic, JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return;
    } finally {
      clearTimeout(alive);
      signal.removeEventListener("abort", abort);
    }
    if (signal.aborted) return;
    connection("Not connected; trying again");
    await new Promise((again) => setTimeout(again, pause * (0.5 + Math.random() / 2)));
    pause = Math.min(pause * 2, PAUSE_MS_MAX);
  }
}
