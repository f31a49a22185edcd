// Server-sent events of a fetch response: https://html.spec.whatwg.org/multipage/server-sent-events.html

/** The data of each event of a byte stream. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without its empty line is incomplete and dropped
      buffer += value;
      const lines = buffer.split(/\r\n|\n|\r(?=[^])/); // a \r at the end may be half of \r\n
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // closes the connection if the reader leaves early
  }
}
