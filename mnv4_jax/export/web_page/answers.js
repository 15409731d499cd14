// Where the page's answers come from: the detector beside it, in this browser.
"use strict";

const answers = (() => {
  const most = Math.min(2, navigator.hardwareConcurrency || 1);
  const workers = [];
  let asked = 0;

  function start() {
    const worker = { thread: new Worker("worker.js", { type: "module" }), waiting: new Map() };
    workers.push(worker);
    worker.ready = new Promise((resolve, reject) => {
      const fail = (text) => {  // it is of no more use, and the next picture gets another
        workers.splice(workers.indexOf(worker), 1);
        worker.thread.terminate();
        const error = new Error(text);
        reject(error);
        worker.waiting.forEach((asker) => asker.reject(error));
      };
      worker.thread.addEventListener("message", ({ data }) => {
        if (data.ready) { resolve(); return; }
        if (data.failed) { fail(data.failed); return; }
        const asker = worker.waiting.get(data.id);
        worker.waiting.delete(data.id);
        if (data.error) asker.reject(new Error(`unreadable: ${data.error}`));
        else asker.resolve(data.rows);
      });
      worker.thread.addEventListener("error", (event) =>
        fail(event.message || "worker.js did not load; this page needs a web server"));
    });
    worker.ready.catch(() => {});  // whoever waits for it is told
    return worker;
  }

  // The one with the least to do; another is started once there is work for two.
  function choose() {
    const [idlest] = [...workers].sort((a, b) => a.waiting.size - b.waiting.size);
    return !idlest || (idlest.waiting.size && workers.length < most) ? start() : idlest;
  }

  const { ready } = start();
  // Once the page works, it is kept for when there is no network. Not at once: copying 23 MB made
  // the first answer take 1.0 s instead of 0.3.
  const keep = () => navigator.serviceWorker?.register("sw.js").catch(() => {});
  ready.then(() => setTimeout(keep, 2000), () => {});

  return {
    about: "It runs in this browser: no picture leaves this machine, and none is kept.",
    more: ["The static page has no explanation maps; the local server has them.", null],
    ready,
    atOnce: most,
    model: async () => (await fetch("model.json")).json(),
    predict: (file, name, signal) => new Promise((resolve, reject) => {
      const id = asked += 1, worker = choose();
      signal.addEventListener("abort", () => reject(new Error("cancelled")));
      worker.waiting.set(id, {
        reject,
        resolve: (rows) => resolve(rows.map((row) => ({ file: name, ...row }))),
      });
      worker.thread.postMessage({ id, file });
    }),
    explain: null,
  };
})();
