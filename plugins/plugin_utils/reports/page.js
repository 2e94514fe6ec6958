/* Copyright (c) edgeml.fleet contributors
SPDX-License-Identifier: GPL-3.0-or-later */
(() => {
  "use strict";
  // Without this script the page lacks its filter, and nothing else.
  const input = document.getElementById("q");
  const found = document.getElementById("found");
  const sites = [...document.querySelectorAll(".site-hosts")].map((details) => ({
    details,
    open: details.open,
    name: details.querySelector("summary b").textContent.toLowerCase(),
    rows: [...details.querySelectorAll("tbody tr")].map((row) => [row, row.textContent.toLowerCase()]),
  }));
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { details, open, name, rows } of sites) {
      let here = 0;
      for (const [row, text] of rows) {
        row.hidden = !words.every((word) => text.includes(word) || name.includes(word));
        here += !row.hidden;
      }
      details.hidden = !here;
      details.open = words.length ? here > 0 : open;
      count += here;
    }
    found.textContent = words.length ? `${count.toLocaleString("en")} found` : "";
  };
  input.addEventListener("input", filter);
  input.parentElement.hidden = false;
})();
