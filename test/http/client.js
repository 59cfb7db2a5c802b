// What postgrest-js makes of the functions: one line of JSON a call.

const tools = process.env.APIKEYS_TOOLS;
const { PostgrestClient } = require(`${tools}/node_modules/@supabase/postgrest-js`);
const client = new PostgrestClient(process.argv[2], { schema: 'apikeys_http' });

function show(name, { data, error, count, status }) {
  console.log(JSON.stringify({ name, status, count, data, code: error && error.code }));
}

async function main() {
  const made = await client.rpc('apikey_create', { name: 'js', user_id: 'js', metadata: { a: [1] } });
  show('create', made);
  const id = made.data.id;
  show('verify', await client.rpc('apikey_verify', { key: made.data.api_key }));
  show('list', await client.rpc('apikey_list', { user_id: 'js' }, { get: true, count: 'exact' }));
  show('update', await client.rpc('apikey_update', { id, patch: { name: 'renamed' } }));
  show('get', await client.rpc('apikey_get', { id }, { get: true }).single());
  show('delete', await client.rpc('apikey_delete', { id }));
  show('again', await client.rpc('apikey_delete', { id }));
}

main();
