"use strict";
(() => {
  const root = document.documentElement, theme = document.getElementById("theme");
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (prefers.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `${theme.textContent} colours`); theme.setAttribute("aria-pressed", String(Boolean(root.dataset.theme))); };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  prefers.addEventListener("change", name);
  name();

  for (const select of document.querySelectorAll("[data-choose]")) {
    const choices = select.closest(".group").querySelectorAll("[data-choice]");
    select.addEventListener("change", () => { for (const c of choices) c.hidden = c.dataset.choice !== select.value; });
  }

  const words = new Intl.Collator("en", { numeric: true });
  const value = (row, column) => {
    const cell = row.cells[column], text = cell.textContent;
    if (text === "") return null;
    const number = Number(cell.dataset.v ?? text);
    return cell.dataset.v === undefined && Number.isNaN(number) ? text : number;
  };
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") {
      return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a < b ? -1 : a > b ? 1 : 0;
    }
    return words.compare(String(a), String(b));
  };

  for (const tools of document.querySelectorAll(".tools")) {
    const table = document.getElementById(tools.dataset.for), body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
    let texts = null;
    const read = () => rows.map((row) => [...row.cells].map((c) => c.textContent).join(" ").toLowerCase());
    const search = tools.querySelector("[data-filter]"), menus = [...tools.querySelectorAll("[data-column]")];
    const count = tools.querySelector("output");

    const filter = () => {
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      texts ??= read();
      let shown = 0;
      rows.forEach((row, i) => {
        const keep = wanted.every((w) => texts[i].includes(w)) &&
          menus.every((m) => m.value === "" || row.cells[m.dataset.column].textContent === m.value);
        row.hidden = !keep;
        shown += keep;
      });
      count.textContent = shown === rows.length ? `${shown} row${shown === 1 ? "" : "s"}` : `${shown} of ${rows.length} rows`;
    };
    search.addEventListener("input", filter);
    for (const menu of menus) menu.addEventListener("change", filter);
    tools.querySelector("[data-more]")?.addEventListener("change", (e) => table.classList.toggle("all", e.target.checked));
    if (search.value || menus.some((m) => m.value)) filter();  // a browser may bring back what was typed

    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
      const keyed = rows.map((row, i) => [value(row, column), i, row]);
      keyed.sort((a, b) => a[0] === null || b[0] === null ? (a[0] === null) - (b[0] === null) || a[1] - b[1] : way * order(a[0], b[0]) || a[1] - b[1]);
      body.append(...keyed.map((k) => k[2]));
    }));
  }
})();
