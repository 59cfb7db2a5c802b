// An Express service with the middleware of doc/http.md: answers who is calling.
//
//   node express_service.js DOCUMENT PORT, with PGHOST and PGPORT set

const fs = require('fs');
const modules = `${process.env.APIKEYS_TOOLS}/node_modules`;
const express = require(`${modules}/express`);
const { Pool } = require(`${modules}/pg`);
const [document, port] = process.argv.slice(2);
const app = express();
const pool = new Pool({ user: 'verifier', database: 'postgres' });
const [, middleware] = fs.readFileSync(document, 'utf8').match(/^```js\n(.*?)^```/ms);

new Function('app', 'pool', middleware)(app, pool);
app.use((req, res) => res.json({ user: req.user }));
// The error handler that there must be is no part of the example.
app.use((error, req, res, next) => res.status(500).json({}));
app.listen(port, '127.0.0.1');
