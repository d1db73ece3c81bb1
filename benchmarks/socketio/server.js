// Socket.IO with its Redis adapter, as its documentation teaches it: what people would pick instead.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const http = createServer();
const pub = createClient({ url: process.env.BENCH_URL });
const sub = pub.duplicate();
await Promise.all([pub.connect(), sub.connect()]);
const io = new Server(http, {
  path: process.env.BENCH_PATH,
  transports: ["websocket"],
  perMessageDeflate: false,
  adapter: createAdapter(pub, sub),
});
io.on("connection", (socket) => {
  socket.on("groups", (names, done) => {
    socket.join(names);
    done("ok");
  });
});
http.listen(Number(process.argv[2]), "127.0.0.1");
