// fauxqs listens on all addresses of a machine; tests are for this one alone.
import net from "node:net";
import { pathToFileURL } from "node:url";
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (options, ...rest) {
    if (options && typeof options === "object") options.host = "127.0.0.1";
    return listen.call(this, options, ...rest);
};
const { FAUXQS_DIST: dist, FAUXQS_PORT: port, FAUXQS_DATA_DIR: dataDir } = process.env;
const part = (name) => import(pathToFileURL(`${dist}/${name}`).href);
// Version 2.4.1 writes NULL over a count that may not be NULL when a message is shown again, and so loses the message.
const { PersistenceManager } = await part("persistence.js");
PersistenceManager.prototype.updateMessageReady = function (id) {
    this.db.prepare("UPDATE sqs_messages SET receipt_handle = NULL, visibility_deadline = NULL WHERE message_id = ?").run(id);
};
const { startFauxqs } = await part("app.js");
await startFauxqs({ port: Number(port), logger: false, dataDir: dataDir || undefined });
