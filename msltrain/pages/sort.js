// A click on a column head sorts the rows by the last number (or the text) in that column: high first, low first, as it was.
// Rows stay in their group.
for (const table of document.querySelectorAll("table.sortable")) {
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => !row.matches(".group"))]);
  const asItWas = bodies.flatMap(([, rows]) => rows), heads = [...table.tHead.rows[0].cells];
  const isText = (column) => !asItWas.some((row) => column && /\d|–/.test(row.cells[column].textContent));
  const value = (row, column) => {
    const cell = row.cells[column], numbers = cell.textContent.match(/\d+(\.\d+)?(?!.*\d)|–$/);
    return isText(column) ? cell.firstChild.textContent.trim() : numbers && numbers[0] !== "–" ? Number(numbers[0]) : NaN;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const [first, second] = isText(column) ? ["ascending", "descending"] : ["descending", "ascending"];
      const before = head.getAttribute("aria-sort"), order = before === first ? second : before ? null : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = order === "ascending" ? 1 : -1;
      if (order) head.setAttribute("aria-sort", order);
      for (const [body, before] of bodies) {
        const rows = [...before];
        if (order) rows.sort((one, other) => {
          const a = value(one, column), b = value(other, column);
          if (typeof a === "string") return sign * a.localeCompare(b);
          return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0;
        });
        body.append(...rows);
      }
    });
  });
}

// The example images of each group, in another order.
const galleries = [...document.querySelectorAll(".gallery")].map((box) => [box, [...box.children]]);
if (galleries.some(([, figures]) => figures.length > 1)) {
  const orders = {
    "as chosen": () => 0,
    "most hidden first": (a, b) => b.dataset.hidden - a.dataset.hidden,
    "least hidden first": (a, b) => a.dataset.hidden - b.dataset.hidden,
    "most classes first": (a, b) => b.dataset.classes - a.dataset.classes,
    "name": (a, b) => a.dataset.key.localeCompare(b.dataset.key),
  };
  const label = document.createElement("label"), select = document.createElement("select");
  label.className = "sorter";
  for (const name of Object.keys(orders)) select.add(new Option(name));
  label.append("Sorted by", select);
  select.addEventListener("change", () => {
    for (const [box, figures] of galleries) box.append(...[...figures].sort(orders[select.value]));
  });
  galleries[0][0].previousElementSibling.before(label);
}
