# Management and metrics through the real PostgREST, by curl, postgrest-js and
# Prometheus.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use HttpTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $promtool = tool('usr/bin/promtool');
my $node = new_server(
	'main',
	'log_min_duration_statement' => '0',
	'log_parameter_max_length' => '-1',
	'log_parameter_max_length_on_error' => '-1');
$node->start;
install($node);
$node->safe_psql(
	'postgres', q(
	CREATE ROLE authenticator LOGIN NOINHERIT;
	CREATE ROLE web_viewer;
	CREATE ROLE web_manager;
	CREATE ROLE web_admin;
	GRANT web_viewer, web_manager, web_admin TO authenticator;
	SELECT apikey_grant('web_viewer', 'viewer');
	SELECT apikey_grant('web_manager', 'manager');
	SELECT apikey_grant('web_manager', 'verifier')));
my %settings = ('db-schemas' => 'apikeys_http', 'db-max-rows' => 2);
my ($url, $log) =
  start_postgrest($node, %settings, 'db-anon-role' => 'web_manager');
my ($viewer) =
  start_postgrest($node, %settings, 'db-anon-role' => 'web_viewer');

# Calls a function with a JSON body; tests the status.
sub call
{
	my ($status, $function, $body, @more) = @_;
	my $answer = ask("$url/rpc/$function", '-H', 'Content-Type: application/json',
		'-d', $body, @more);

	is($answer->{status}, $status, "$function $body") or diag($answer->{all});
	return $answer;
}

# The same, by GET.
sub get
{
	my ($status, $path) = @_;
	my $answer = ask("$url/rpc/$path");

	is($answer->{status}, $status, $path) or diag($answer->{all});
	return $answer;
}

# The error of an answer: code and details.
sub error
{
	my $body = json($_[0]);
	return join ' ', map { $body->{$_} // '-' } qw(code details);
}

# ----- Make, read, change, delete -----

my $answer = call(201, 'apikey_plan_create',
	'{"name": "Pro", "max_requests": 10, "request_period": "year", "plan_id": "pro"}');
is(json($answer)->{id}, 'pro', 'a plan is made');
call(201, 'apikey_user_create', '{"user_id": "ulla", "email": "u@example.com"}');
call(201, 'apikey_role_create', '{"name": "reader", "permissions": ["docs.read"]}');
call(200, 'apikey_limit_set',
	'{"name": "burst", "amount": 1000, "period": "1 s", "plan_id": "pro"}');

my $key = json(call(201, 'apikey_create',
		'{"name": "first", "user_id": "ulla", "plan_id": "pro",
		  "metadata": {"team": "a"}, "permissions": ["x.*"], "roles": ["reader"]}'));
my @secrets = ($key->{api_key});
like($key->{api_key}, qr/^ak_/, 'a key is made, with its secret');
is_deeply($key->{metadata}, { team => 'a' }, 'metadata is JSON');
is_deeply($key->{permissions}, ['x.*'], 'permissions are an array');
$answer = call(200, 'apikey_regenerate', qq({"id": "$key->{id}"}));
is($answer->{headers}{'cache-control'}, 'no-store', 'a secret is not to be stored');
push @secrets, json($answer)->{api_key};

my $verified = json(call(200, 'apikey_verify',
		qq({"key": "$secrets[1]", "permissions": "docs.read", "charges": {}})));
is($verified->{code}, 'VALID', 'the new secret is valid');
is($verified->{remaining}, 9, 'and metered');
is(json(call(200, 'apikey_verify', qq({"key": "$secrets[0]"})))->{code},
	'NOT_FOUND', 'the old one is not');
is(json(call(200, 'apikey_whoami', qq({"key": "$secrets[1]"})))->{id},
	$key->{id}, 'whose it is');
is(scalar @{ json(call(200, 'apikey_verify_many', qq({"keys": ["$secrets[1]", "a", "b", "c"]}))) },
	4, 'many are answered, however few rows PostgREST shows');
is(json(get(200, "apikey_usage?id=$key->{id}"))->{current_usage}, 2, 'usage');
$answer = get(200, "apikey_get?id=$key->{id}");
is(json($answer)->{status}, 'active', 'a key by its id');
unlike($answer->{body}, qr/api_key|digest/, 'without secret or digest');
is(json(call(200, 'apikey_update',
			qq({"id": "$key->{id}", "patch": {"enabled": false, "metadata": null}})))->{status},
	'disabled', 'a key is changed');
is(json(call(200, 'apikey_delete', qq({"id": "$key->{id}"})))->{status},
	'deleted', 'and deleted');
is(json(call(200, 'apikey_restore', qq({"id": "$key->{id}"})))->{status},
	'disabled', 'and restored');
ok(flushed($node, 'postgres', 2), 'requests are in the history');
$answer = get(200, "apikey_requests?id=$key->{id}");
is(scalar @{ json($answer) }, 2, 'and shown');
is($answer->{headers}{'content-range'}, '0-1/*', 'of an unknown total');

# ----- Lists -----

call(201, 'apikey_create', qq({"name": "k$_", "user_id": "lists"})) foreach 1 .. 5;
$answer = get(200, 'apikey_list?user_id=lists');
is(scalar @{ json($answer) }, 5, 'a list is whole, whatever db-max-rows is');
is($answer->{headers}{'content-range'}, '0-4/5', 'and tells the total');
$answer = get(200, 'apikey_list?user_id=lists&page_size=2&page_offset=4');
is($answer->{headers}{'content-range'}, '4-4/5', 'the last page');
$answer = get(200, 'apikey_list?user_id=lists&page_offset=10');
is("$answer->{headers}{'content-range'} $answer->{body}", '*/5 []', 'beyond it');
is(get(200, 'apikey_plan_list')->{headers}{'content-range'}, '0-0/1', 'plans');
is(get(200, 'apikey_user_list?plan_id=none')->{headers}{'content-range'}, '*/0', 'users');
is(get(200, 'apikey_role_list')->{headers}{'content-range'}, '0-0/1', 'roles');
is(get(200, 'apikey_limit_list?plan_id=pro')->{headers}{'content-range'}, '0-0/1', 'limits');
is(get(200, 'apikey_count?user_id=lists')->{body}, '5', 'a count');
my ($second) = json($answer = get(200, 'apikey_list?user_id=lists&page_size=2'))->[1]{id};
is($answer->{headers}{'content-range'}, '0-1/5', 'a first page');
$answer = get(200, "apikey_list?user_id=lists&page_size=2&after=$second");
is("$answer->{headers}{'content-range'} " . json($answer)->[0]{name}, '*/5 k3',
	'of what comes after a key, the place is not known');
is(get(200, "apikey_requests?id=$key->{id}&before=infinity")->{headers}{'content-range'}, '*/*', 'nor before a time');

# HEAD tells what GET does, but for the body.
$answer = ask("$url/rpc/apikey_list?user_id=lists&page_size=2", '-I');
is("$answer->{status} $answer->{headers}{'content-range'}", '200 0-1/5', 'HEAD tells the total');
is(ask("$url/rpc/$_->[1]", '-I')->{status}, $_->[0], "HEAD $_->[1]")
  foreach [ 400, 'apikey_list?page_size=0' ], [ 404, 'apikey_get?id=01a206ce-f462-7d9d-86a0-774112bb6d8e' ],
  [ 404, 'apikey_plan_usage?plan_id=none' ], [ 400, 'apikey_count?metadata=[]' ], [ 405, 'apikey_create?name=x' ];

# Metadata in a URL, of which PostgREST makes a string.
call(201, 'apikey_create', '{"name": "golden", "metadata": {"tier": "gold"}}');
is(json(get(200, 'apikey_list?metadata={"tier":"gold"}'))->[0]{name}, 'golden', 'metadata by GET');
is(get(200, 'apikey_count?metadata={"tier":"gold"}')->{body}, '1', 'counted');
is(json(get(200, 'apikey_user_list?metadata={}'))->[0]{id}, 'ulla', 'of users');
is(json(call(200, 'apikey_list', '{"metadata": {"tier": "gold"}}'))->[0]{name}, 'golden', 'by POST');
is(error(get(400, 'apikey_list?metadata={"tier"')), '22023 field "metadata"', 'that is no JSON');
is(error(get(400, 'apikey_list?page_size=1001')), '22023 field "page_size"',
	'a page that cannot be');

# ----- Errors -----

my $unknown = '01a206ce-f462-7d9d-86a0-774112bb6d8e';
is(error(get(404, "apikey_get?id=$unknown")), 'P0002 -', 'no such key');
is(error(get(404, 'apikey_plan_get?plan_id=none')), 'P0002 -', 'no such plan');
is(error(get(404, "apikey_usage?id=$unknown")), 'P0002 -', 'no usage');
is(error(get(404, "apikey_$_?id=$unknown")), 'P0002 -', "no $_") foreach qw(requests usage_series ledger);
is(error(get(404, "apikey_user_$_?user_id=none")), 'P0002 -', "no user's $_") foreach qw(requests usage_series ledger);
# A user may have no row, but keys; what is deleted is there until it is purged.
call(201, 'apikey_create', '{"name": "his", "user_id": "rowless"}');
call(201, 'apikey_user_create', '{"user_id": "keyless"}');
call(200, 'apikey_user_delete', '{"user_id": "keyless"}');
my $gone = json(call(201, 'apikey_create', '{"name": "gone"}'))->{id};
call(200, 'apikey_delete', qq({"id": "$gone"}));
foreach my $history (qw(requests usage_series ledger))
{
	get(200, "apikey_user_$history?user_id=$_") foreach qw(rowless keyless);
	get(200, "apikey_$history?id=$gone");
}
is(error(call(404, 'apikey_delete', qq({"id": "$unknown"}))), 'P0002 -', 'nothing to delete');
is(error(call(404, 'apikey_whoami', '{"key": "junk"}')), 'P0002 -', 'nobody');
is(error(call(404, 'apikey_create', '{"name": "x", "plan_id": "none"}')), 'P0002 -', 'unknown plan');
is(error(call(409, 'apikey_plan_create', '{"name": "Pro", "plan_id": "pro"}')), '23505 -', 'exists');
like(error(call(409, 'apikey_user_create', '{"user_id": "u2", "email": "U@example.com"}')), qr/^23505/, 'email exists');
is(error(call(400, 'apikey_create', '{"name": ""}')), '22023 field "name"', 'a bad name');
is(error(call(400, 'apikey_create', $_)), '22004 field "name"', 'no name') foreach '{"name": null}', '{}';
push @secrets, json(call(201, 'apikey_create', '{"name": "enabled"}'))->{api_key};
is(error(call(400, $_->[0], $_->[1])), $_->[2], "$_->[0] names the field")
  foreach [ 'apikey_create', '{"name": "x", "permissions": ["a..b"]}', '22023 field "permissions"' ],
  [ 'apikey_create', '{"name": "x", "refill_amount": 1, "refill_every": "1 month 1 day"}', '22023 field "refill_every"' ],
  [ 'apikey_update', qq({"id": "$key->{id}", "patch": {"permissions": ["a..b"]}}), '22023 field "permissions"' ],
  [ 'apikey_update', qq({"id": "$key->{id}"}), '22004 field "patch"' ],
  [ 'apikey_role_create', qq({"name": "x", "permissions": ["@{[ 'a' x 300 ]}"]}), '22023 field "permissions"' ],
  [ 'apikey_plan_create', '{"name": "x", "plan_id": ""}', '22023 field "plan_id"' ],
  [ 'apikey_plan_update', '{"plan_id": "pro", "patch": {"request_period": "eon"}}', '22023 field "request_period"' ],
  [ 'apikey_plan_create', '{"name": "x", "http_role": "none"}', '42704 field "http_role"' ],
  [ 'apikey_user_create', '{"user_id": ""}', '22023 field "user_id"' ],
  [ 'apikey_user_update', '{"user_id": "ulla", "patch": {"email": "x"}}', '22023 field "email"' ],
  [ 'apikey_limit_set', '{"name": "l", "amount": 1, "period": "1 month", "plan_id": "pro"}', '22023 field "period"' ],
  [ 'apikey_limit_set', '{"name": "l", "amount": 1, "plan_id": "pro"}', '22004 field "period"' ],
  [ 'apikey_credits', qq({"id": "$key->{id}", "operation": "set", "value": 9000000000000000000}), '22023 field "value"' ],
  [ 'apikey_usage_adjust', qq({"id": "$key->{id}", "delta": -5}), '22023 field "delta"' ],
  [ 'apikey_verify', qq({"key": "$secrets[-1]", "charges": {"none": 1}}), '22023 field "charges"' ],
  [ 'apikey_reserve', '{"key": "x"}', '22004 field "max_cost"' ],
  [ 'apikey_check', '{"cost": -1}', '22023 field "cost"' ],
  [ 'apikey_check', '{"permissions": "a OR"}', '22023 field "permissions"' ];
is(json(call(200, 'apikey_verify', '{}'))->{code}, 'MALFORMED', 'no key is a decision');
# Where null says something, what is missing is not null.
like(error(call(404, 'apikey_usage_adjust', qq({"id": "$key->{id}"}))), qr/^PGRST202/, 'no delta');
like(error(call(404, 'apikey_credits', qq({"id": "$key->{id}", "operation": "set"}))), qr/^PGRST202/, 'no value');
is(scalar @{ json(get(200, "apikey_usage_series?id=$key->{id}&from=2026-01-01&to=2026-01-02&$_")) }, 24, $_) foreach 'step=hour', 'every=1%20hour';
like(error(call(400, 'apikey_create', '{"name": "x", "expires_at": "soon"}')), qr/^22007 -/, 'what PostgREST cannot read has no field');
is(error(call(400, 'apikey_plan_create', '{"name": "x", "max_requests": -2}')), '22023 field "max_requests"', 'a bad number');
is(error(call(400, 'apikey_plan_create', '{"name": "x", "request_period": "eon"}')), '22023 field "request_period"', 'a bad period');
is(error(call(400, 'apikey_update', qq({"id": "$key->{id}", "patch": {"nme": 1}}))), '22023 field "nme"', 'an unknown field');
is(error(call(400, 'apikey_update', qq({"id": "$key->{id}", "patch": {"expires_at": "soon"}}))), '22023 field "expires_at"', 'a bad time');
is(error(call(400, 'apikey_update', qq({"id": "$key->{id}", "patch": {"name": null}}))), '23502 field "name"', 'a null');
is(error(call(400, 'apikey_verify', '{"key": "x", "cost": -1}')), '22023 field "cost"', 'a bad cost');
like(error(call(400, 'apikey_verify', '{"key": "x", "permissions": "a OR"}')), qr/^22023/, 'a bad expression');
like(error(call(400, 'apikey_delete', '{"id": "x"}')), qr/^22P02/, 'no uuid');
like(error(call(400, 'apikey_delete', '{"id": ')), qr/^PGRST102/, 'no JSON');
like(error(call(404, 'apikey_delete', '{"key_id": "x"}')), qr/^PGRST202/, 'an unknown argument');
call(405, 'apikey_delete', qq({"id": "$key->{id}"}), '-X', 'DELETE');
is(get(405, 'apikey_plan_create?name=x')->{status}, 405, 'a GET changes nothing');

# A secret has no place in a URL, whoever logs it.
foreach my $function ('apikey_verify?key=x', 'apikey_whoami?key=x',
	'apikey_reserve?key=x&max_cost=1', 'apikey_verify_many?keys={x}')
{
	$answer = get(405, $function);
	is("$answer->{headers}{allow} " . error($answer), 'POST 0A000 Servers and proxies log URLs.', 'only a POST');
	is(ask("$url/rpc/$function", '-I')->{status}, 405, 'no HEAD either');
}

like(error(call(401, 'apikey_plan_create', '{"name": "x", "http_role": "web_admin"}')),
	qr/^42501/, 'a role that the manager could not set');
$node->safe_psql('postgres', q(
	UPDATE apikeys.plans SET max_keys_per_user = 1 WHERE id = 'pro';
	SELECT apikey_create('one', 'one', 'pro')));
like(error(call(409, 'apikey_create', '{"name": "two", "user_id": "one", "plan_id": "pro"}')),
	qr/^23514/, 'keys enough');

is(ask("$viewer/rpc/apikey_count")->{status}, 200, 'a viewer may look');
is(ask("$viewer/rpc/$_->[0]", '-H', 'Content-Type: application/json', '-d', $_->[1])->{status},
	401, "but not call $_->[0]")
  foreach [ 'apikey_create', '{"name": "x"}' ], [ 'apikey_verify', '{"key": "x"}' ], [ 'apikey_check', '{}' ];

# ----- OpenAPI -----

my $api = json(ask("$url/"));
is($api->{info}{title}, 'API keys', 'the title');
my $post = $api->{paths}{'/rpc/apikey_create'}{post};
is($post->{summary}, 'Create an API key.', 'a summary');
like($post->{description}, qr/409 for a conflict/, 'a description');
is_deeply(
	[ grep { !$api->{paths}{$_}{post}{summary} || !$api->{paths}{$_}{post}{description} }
		grep { m!^/rpc/! } sort keys %{ $api->{paths} } ],
	[],
	'every function has both');

# ----- postgrest-js -----

my ($out, $err);
IPC::Run::run([ 'node', "$FindBin::RealBin/../http/client.js", $url ],
	'<', \undef, '>', \$out, '2>', \$err)
  or diag($err);
my %told = map { $_->{name} => $_ } map { json($_) } split /\n/, $out;
push @secrets, $told{create}{data}{api_key};
is($told{create}{status}, 201, 'postgrest-js: create');
is($told{verify}{data}{code}, 'VALID', 'verify');
is_deeply($told{verify}{data}{metadata}, { a => [1] }, 'metadata');
is("$told{list}{count} $told{list}{data}[0]{name}", '1 js', 'list, with its count');
is($told{update}{data}{name}, 'renamed', 'update');
is($told{get}{data}{name}, 'renamed', 'get a single one');
is($told{delete}{data}{status}, 'deleted', 'delete');
is("$told{again}{status} $told{again}{code}", '404 P0002', 'an error');

# ----- Metrics -----

$answer = get(200, 'apikey_metrics');
is($answer->{headers}{'content-type'},
	'application/openmetrics-text; version=1.0.0; charset=utf-8', 'OpenMetrics');
like($answer->{body}, qr/^apikeys_verifications_total\{outcome="VALID"\} 3$/m, 'a counter');
like($answer->{body}, qr/^apikeys_flush_lag_seconds \d+(\.\d+)?$/m, 'a gauge, in seconds');
like($answer->{body}, qr/^# EOF\n\z/m, 'the end');
$answer = ask("$url/rpc/apikey_metrics", '-H', 'Accept: text/plain');
is($answer->{headers}{'content-type'}, 'text/plain; version=0.0.4; charset=utf-8', 'the older format');
ok(IPC::Run::run([ $promtool, 'check', 'metrics' ], '<', \$answer->{body}, '>', \$out, '2>', \$err),
	'promtool finds nothing wrong with it');
is("$out$err", '', 'nor odd');

my $dir = PostgreSQL::Test::Utils::tempdir;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my ($target) = $viewer =~ m!//(.*)!;
append_to_file("$dir/prometheus.yml", <<"END");
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
  - job_name: apikeys
    metrics_path: /rpc/apikey_metrics
    static_configs: [ { targets: ["$target"] } ]
END
ok(IPC::Run::run([ $promtool, 'check', 'config', "$dir/prometheus.yml" ], '<', \undef, '>', \$out, '2>', \$err),
	'the configuration is one');
start_service("$dir/prometheus.log", "http://127.0.0.1:$port/-/ready",
	tool('usr/bin/prometheus'), "--config.file=$dir/prometheus.yml",
	"--storage.tsdb.path=$dir/tsdb", "--web.listen-address=127.0.0.1:$port");
ok( until_true(
		sub {
			my $found = json(ask("http://127.0.0.1:$port/api/v1/query?query=apikeys_verifications_total"));
			my %value = map { $_->{metric}{outcome} => $_->{value}[1] } @{ $found->{data}{result} };
			return ($value{VALID} // -1) == 3 && keys %value == 9;
		}),
	'Prometheus has scraped it');
is_deeply(
	[ map { $_->{type} } @{ json(ask("http://127.0.0.1:$port/api/v1/metadata?metric=apikeys_verifications"))->{data}{apikeys_verifications} } ],
	['counter'],
	'as OpenMetrics, a counter');

stop_services();
$node->stop;
foreach my $secret (@secrets)
{
	unlike(slurp_file($node->logfile), qr/\Q$secret\E/, 'no secret in the log of the server');
	unlike(slurp_file($log), qr/\Q$secret\E/, 'nor of PostgREST');
}

done_testing();
