// The search of these pages runs in a worker, and browsers start none for pages that are opened from disk. There, this class
// stands in for it: it runs the same script in a hidden frame, and passes messages both ways.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.append(this.frame);
    const inner = this.frame.contentWindow;
    inner.postMessage = (data) => {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    };
    inner.importScripts = async (...urls) => {
      for (const one of urls) await this.load(one);
    };
    this.ready = this.load(url);
  }

  load(url) {
    const page = this.frame.contentDocument;
    return new Promise((done, failed) => {
      const script = page.createElement("script");
      Object.assign(script, { src: url, onload: done, onerror: failed });
      page.body.append(script);
    });
  }

  postMessage(data) {
    const inner = this.frame.contentWindow;
    this.ready.then(() => inner.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker; // the script looks for this name to know where it runs
  window.Worker = IFrameWorker;
}
