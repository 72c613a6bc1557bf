// A server of the `ws` package that does what the path of a connection says; prints its port.
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, autoPong: false, perMessageDeflate: true });
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket, request) => {
  const [, action, value] = request.url.split("/");
  if (action === "close") {
    socket.send(JSON.stringify({ n: 1, extensions: socket.extensions }));
    socket.close(Number(value), "says so");
  } else if (action === "terminate") {
    socket.terminate();
  } else if (action === "pieces") {
    for (const [n, piece] of ['{"text":"', "in ", "pieces", '"}'].entries()) {
      socket.send(piece, { fin: n === 3 });
    }
    socket.close(1000);
  } else if (action === "long") {
    socket.send("x".repeat(Number(value)));
  } else if (action === "pings") {
    // Answers no ping, and says how many came.
    socket.on("ping", () => socket.send('{"ping":1}'));
  }
});
