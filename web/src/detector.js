/** The page's end of the worker: ask for a picture's candidates, get a promise. */
export class Detector {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #open = new Map();
  #next = 0;

  /** Resolves when the model is loaded; rejects with one clear line if it cannot be. */
  ready;

  constructor() {
    this.ready = new Promise((resolve, reject) => {
      this.#worker.addEventListener("message", ({ data }) => {
        if (data.ready) resolve();
        else if (data.failed) reject(new Error(data.failed));
        else this.#settle(data);
      });
      this.#worker.addEventListener("error", () => {
        reject(new Error("The detector could not be started; reload the page in a current browser."));
      });
    });
    this.ready.catch(() => {}); // told to whoever waits for it
  }

  /**
   * The candidates of a picture: { candidates, width, height, network, milliseconds, bitmap }.
   * `bitmap` goes to the worker and comes back with the answer.
   */
  async detect(bitmap, longSide) {
    await this.ready;
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#open.set(id, { resolve, reject });
      this.#worker.postMessage({ id, bitmap, longSide }, [bitmap]);
    });
  }

  #settle({ id, error, ...found }) {
    const { resolve, reject } = this.#open.get(id);
    this.#open.delete(id);
    if (error) reject(new Error(error));
    else resolve(found);
  }
}
