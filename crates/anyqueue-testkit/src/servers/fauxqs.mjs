// fauxqs listens on all addresses of a machine; tests are for this one alone.
import net from "node:net";
import { pathToFileURL } from "node:url";
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (options, ...rest) {
    if (options && typeof options === "object") options.host = "127.0.0.1";
    return listen.call(this, options, ...rest);
};
const { startFauxqs } = await import(pathToFileURL(process.env.FAUXQS_APP).href);
const { FAUXQS_PORT: port, FAUXQS_DATA_DIR: dataDir } = process.env;
await startFauxqs({ port: Number(port), logger: false, dataDir: dataDir || undefined });
