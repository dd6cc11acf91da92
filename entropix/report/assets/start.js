// The page's data and scripts, which it carries compressed: most of them is plotly.js. They run in their order.
"use strict";

(async () => {
  // As `base64.b85encode` writes it, with / for <, which could end this element: five letters are four bytes.
  const LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;/=>?@^_`{|}~";
  const place = new Map([...LETTERS].map((letter, value) => [letter, value]));
  const text = document.getElementById("scripts").textContent.trim();
  const view = new DataView(new ArrayBuffer((text.length / 5) * 4));
  for (let i = 0; i < text.length; i += 5) {
    let number = 0;
    for (let j = i; j < i + 5; j++) number = number * 85 + place.get(text[j]);
    view.setUint32((i / 5) * 4, number);
  }
  const { length } = document.getElementById("scripts").dataset;
  try {
    const packed = new Blob([new Uint8Array(view.buffer, 0, Number(length))]).stream();
    const { sources, payload } = await new Response(packed.pipeThrough(new DecompressionStream("deflate"))).json();
    globalThis.payload = payload; // for shell.js
    for (const source of sources) {
      const script = document.createElement("script");
      script.textContent = source;
      document.body.append(script);
    }
    document.documentElement.dataset.ready = "";
  } catch (error) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = `This page could not draw itself; it needs a browser of 2023 or later (${error}).`;
    document.querySelector("main").prepend(note);
    throw error;
  }
})();
