// The endpoint that authorises channels, by the vendor's own library; prints its port.
const Pusher = require("pusher");
const http = require("http");

const pusher = new Pusher({ appId: "1", key: "278d425bdf160c739803", secret: "7ad3773142a6692b25b8", cluster: "eu", useTLS: true,
  encryptionMasterKeyBase64: Buffer.alloc(32, 7).toString("base64") });
const server = http.createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const form = new URLSearchParams(body);
    const channel = form.get("channel_name");
    const who = channel.startsWith("presence-") ? { user_id: 10, user_info: { name: "Mr. Channels" } } : undefined;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(pusher.authorizeChannel(form.get("socket_id"), channel, who)));
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
