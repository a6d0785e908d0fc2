// Sorting of tables, pictures in large, the choice of light or dark. The pages are whole without it.
"use strict";
(() => {
  const THEMES = ["system", "light", "dark"];

  const remembered = () => {
    try {
      const theme = localStorage.getItem("zsad-theme");
      return THEMES.includes(theme) ? theme : "system";
    } catch {
      return "system";  // storage is refused for files in some browsers
    }
  };

  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };

  const offerThemes = () => {
    const button = document.getElementById("theme");
    let theme = remembered();
    const show = () => { button.textContent = `Theme: ${theme}`; };
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      apply(theme);
      show();
      try { localStorage.setItem("zsad-theme", theme); } catch { /* kept for this page only */ }
    });
    show();
    button.hidden = false;
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value;
    if (number === undefined) return cell.textContent.trim();
    return number === "" ? null : Number(number);
  };

  // Undefined values stay at the end in both directions; equal ones keep their order.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  };

  const sort = (table, column, direction) => {
    const heads = [...table.tHead.rows[0].cells];
    const sign = direction === "descending" ? -1 : 1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => compare(a, b, sign));
    body.append(...rows.map(([, row]) => row));
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
  };

  const makeSortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const kind = head.classList;
        const first = kind.contains("number") && !kind.contains("low-first") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        sort(table, column, head.getAttribute("aria-sort") === first ? other : first);
      });
    });
  };

  // A link ending in #sort=TABLE:COLUMN:ascending opens a page with that table sorted.
  const sortByLink = () => {
    const asked = /^#sort=([\w-]+):(\d+):(ascending|descending)$/.exec(location.hash);
    const table = asked && document.getElementById(asked[1]);
    if (!table || !table.classList.contains("sortable")) return;
    const column = Number(asked[2]);
    if (column >= table.tHead.rows[0].cells.length) return;
    sort(table, column, asked[3]);
    for (let node = table; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    table.scrollIntoView();
  };

  const captionOf = (link) => {
    const key = link.closest("li").querySelector(".key").textContent;
    const lines = link.closest("figure").querySelector("figcaption").innerText.split("\n");
    return [key, ...lines].join(", ");
  };

  // A picture opens over the page, by mouse or Enter; arrows lead to its neighbours, Escape back to it.
  const enlarge = () => {
    const links = [...document.querySelectorAll("a.zoom")];
    if (!links.length) return;
    const lens = document.createElement("dialog");
    const picture = document.createElement("img");
    const caption = document.createElement("p");
    const menu = document.createElement("menu");
    let place = 0;
    const show = (index) => {
      place = (index + links.length) % links.length;
      picture.src = links[place].href;
      picture.alt = links[place].querySelector("img").alt;
      caption.textContent = captionOf(links[place]);
    };
    const acts = {
      Previous: () => show(place - 1),
      Next: () => show(place + 1),
      Close: () => lens.close(),
    };
    const keys = { ArrowLeft: acts.Previous, ArrowRight: acts.Next };
    for (const [name, act] of Object.entries(acts)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.autofocus = act === acts.Close;
      button.addEventListener("click", act);
      menu.append(button);
    }
    lens.className = "lens";
    lens.setAttribute("aria-label", "Picture in large");
    lens.append(picture, caption, menu);
    lens.addEventListener("keydown", (event) => keys[event.key]?.());
    lens.addEventListener("close", () => links[place].focus());
    picture.addEventListener("click", acts.Close);
    document.body.append(lens);
    links.forEach((link, index) => link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;  // in a window of its own
      event.preventDefault();
      show(index);
      lens.showModal();
    }));
  };

  apply(remembered());
  document.addEventListener("DOMContentLoaded", () => {
    offerThemes();
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    enlarge();
    sortByLink();
    window.addEventListener("hashchange", sortByLink);
  });
})();
