// Where the page's answers come from: the server that sent it. mnv4_jax/export/web_page/answers.js
// is the same for a page without a server.
"use strict";

const answers = {
  about: "Pictures go to the server that sent you this page and are kept nowhere.",
  more: ["The HTTP interface", "docs"],
  ready: Promise.resolve(),
  atOnce: 3,
  model: async () => (await fetch("v1/model")).json(),

  // [{file, p_fake, reason or error, face}], one a face; throws what to tell.
  async predict(file, name, signal) {
    const form = new FormData();
    form.append("picture", file, name);
    for (;;) {
      const response = await fetch("v1/predict", { method: "POST", body: form, signal });
      if (response.status !== 503) {
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.detail);
        return answer.results;
      }
      await new Promise((wait) => setTimeout(wait, 1000));  // busy: the same picture again
      signal.throwIfAborted();
    }
  },

  // {map: a PNG, seen: [left, top, width, height] in px of the picture}, or null.
  async explain(file, face) {
    const response = await fetch(`v1/explain?face=${face}`, { method: "POST", body: file });
    if (!response.ok) return null;
    return { map: await response.blob(), seen: response.headers.get("seen").split(",").map(Number) };
  },
};
