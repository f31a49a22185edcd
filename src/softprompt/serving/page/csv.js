// CSV as in RFC 4180, separated by commas, semicolons or tabs, with any line ends.

export const DELIMITERS = { ",": "commas", ";": "semicolons", "\t": "tabs" };
const SAMPLE = 1 << 16; // characters
const SAMPLE_RECORDS = 20;

/** A file that cannot be read, with the reason. */
export class CsvError extends Error {}

/**
 * The table of a file's bytes: `{columns, rows, delimiter, bom}`, each row as many texts as there are columns.
 * Blank lines are left out, and so are empty fields beyond the last column.
 */
export function readTable(bytes) {
  const { text, bom } = decode(bytes);
  const delimiter = detect(text);
  const [header, ...records] = parse(text, delimiter);
  if (!header) throw new CsvError("The file is empty. Its first line must name the columns.");
  const columns = checkedNames(withoutEmptyEnd(header));
  return { columns, rows: records.map((record, i) => fitted(record, columns, i + 1)), delimiter, bom };
}

/** The text of a CSV file. A field is quoted only where it has to be; `bom` helps spreadsheets to find UTF-8. */
export function writeTable({ columns, rows, delimiter = ",", bom = false }) {
  const special = new RegExp(`["\r\n${delimiter}]`);
  const field = (text) => (special.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const line = (fields) => (fields.length === 1 && fields[0] === "" ? '""' : fields.map(field).join(delimiter));
  return (bom ? "\ufeff" : "") + [columns, ...rows].map((fields) => `${line(fields)}\r\n`).join("");
}

/** All records of a text. A file with tabs whose quotes are no CSV quotes is read as written. */
export function parse(text, delimiter) {
  try {
    return [...records(text, delimiter)];
  } catch (error) {
    if (delimiter === "\t" && error instanceof CsvError) return [...records(text, delimiter, false)];
    throw error;
  }
}

/** The separator with which the first line has several columns and the next lines have as many. */
export function detect(text) {
  let [found, best] = [",", 0];
  for (const delimiter of Object.keys(DELIMITERS)) {
    const widths = sampleWidths(text, delimiter);
    if (!(widths[0] > 1)) continue;
    const score = widths[0] + (widths.every((width) => width === widths[0]) ? 1e6 : 0);
    if (score > best) [found, best] = [delimiter, score];
  }
  return found;
}

function sampleWidths(text, delimiter) {
  const widths = [];
  try {
    for (const record of records(text.slice(0, SAMPLE), delimiter)) {
      widths.push(record.length);
      if (widths.length === SAMPLE_RECORDS) return widths;
    }
  } catch {
    return widths; // the sample ends within quotes, or this is not the separator
  }
  return text.length > SAMPLE && widths.length > 1 ? widths.slice(0, -1) : widths; // the last one may be cut
}

function* records(text, delimiter, quotes = true) {
  const unquoted = new RegExp(`[^\r\n${delimiter}]*`, "y");
  let position = 0;
  for (let number = 0; position < text.length; ) {
    const start = position;
    const record = [];
    for (;;) {
      let field;
      if (quotes && text[position] === '"') [field, position] = quotedField(text, position, number);
      else {
        unquoted.lastIndex = position;
        [field] = unquoted.exec(text);
        position += field.length;
      }
      record.push(field);
      if (text[position] !== delimiter) break;
      position++;
    }
    const blank = position === start;
    position = afterLineEnd(text, position, number);
    if (blank) continue;
    number++;
    yield record;
  }
}

function quotedField(text, start, number) {
  let position = start + 1;
  for (;;) {
    position = text.indexOf('"', position);
    if (position < 0) throw new CsvError(`${rowName(number)}: a quoted field does not end.`);
    if (text[position + 1] !== '"') break;
    position += 2;
  }
  return [text.slice(start + 1, position).replaceAll('""', '"'), position + 1];
}

function afterLineEnd(text, position, number) {
  if (text.startsWith("\r\n", position)) return position + 2;
  if (position < text.length && text[position] !== "\r" && text[position] !== "\n") {
    throw new CsvError(`${rowName(number)}: there is text after a closing quote. Write a quote within quotes twice.`);
  }
  return position + 1;
}

const rowName = (number) => (number ? `Row ${number}` : "First line");

function decode(bytes) {
  const [first, second] = bytes;
  const utf16 = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : null;
  try {
    const text = new TextDecoder(utf16 ?? "utf-8", { fatal: true }).decode(bytes); // drops the byte order mark
    return { text, bom: Boolean(utf16) || (first === 0xef && second === 0xbb && bytes[2] === 0xbf) };
  } catch {
    throw new CsvError("The file is not in UTF-8. Save it again as CSV UTF-8.");
  }
}

function checkedNames(names) {
  names.forEach((name, i) => {
    if (!name.trim()) throw new CsvError(`Column ${i + 1} has no name in the first line.`);
    if (names.indexOf(name) < i) throw new CsvError(`Two columns are named "${name}".`);
  });
  return names;
}

function withoutEmptyEnd(record) {
  let end = record.length;
  while (end > 1 && !record[end - 1].trim()) end--;
  return record.slice(0, end);
}

function fitted(record, columns, number) {
  const row = record.slice(0, Math.max(withoutEmptyEnd(record).length, columns.length));
  if (row.length === columns.length) return row;
  throw new CsvError(`Row ${number} has ${row.length} fields, but the first line names ${columns.length} columns.`);
}
