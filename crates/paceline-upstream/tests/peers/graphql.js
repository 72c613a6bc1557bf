// Subscriptions by the `graphql-ws` package; prints its port. Who brings another token than "right" is refused.
const { WebSocketServer } = require("ws");
const { buildSchema } = require("graphql");
const { useServer } = require("graphql-ws/use/ws");

const schema = buildSchema("type Query { a: Int } type Subscription { count(upto: Int!): Int! }");
const roots = {
  subscription: {
    count: async function* ({ upto }) {
      for (let n = 1; n <= upto; n++) yield { count: n };
      await new Promise(() => {});
    },
  },
};
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
useServer({ schema, roots, onConnect: (context) => context.connectionParams?.token === "right" }, server);
server.on("listening", () => console.log(server.address().port));
