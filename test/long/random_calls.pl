# Prints a script for psql: calls of the extension's functions with arguments that
# are plausible, NULL, extreme or odd, by their types. The arguments: the role
# that will run it, how many calls, a seed. It asks the database "smith" what
# there is.

use strict;
use warnings FATAL => 'all';

my ($role, $calls, $seed) = @ARGV;
srand $seed;

sub any { return $_[ int rand @_ ] }

sub rows
{
	my ($query) = @_;
	open my $psql, '-|', 'psql', '-XAtq', '-F', "\x1f", '-R', "\x1e", '-d', "dbname=smith user=$role", '-c', $query
	  or die "psql: $!";
	local $/;
	my $all = <$psql> // '';
	close $psql or die 'psql failed';
	$all =~ s{\n\z}{};
	return map { [ split /\x1f/, $_, -1 ] } split /\x1e/, $all;
}

sub quoted
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

my @ids = map { $_->[0] } rows('SELECT DISTINCT id FROM smith.hints');
my @secrets = map { $_->[0] } rows('SELECT DISTINCT key FROM smith.hints WHERE key IS NOT NULL');
my @words = qw(acme mover erased other pro minutes empty gone default shop reader writer rate tokens of-key
  key user plan day hour minute week month year credits usage set add subtract keep refund GET POST
  application verifier viewer manager stranger app public postgres none all VALID deleted active
  apikey_verify docs.read docs.* * canary.read -1 0 1 x);

my @moments = ("'-infinity'", "'infinity'", "'4714-11-24 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'",
	"'epoch'", "'2000-01-01'", "'2024-02-29 12:00+00'", 'now()', "now() + interval '1 second'", "now() - interval '1 hour'",
	"now() - interval '100 years'", "'9999-12-31'");
my @intervals = ("'0'", "'1 second'", "'1 microsecond'", "'-1 microsecond'", "'-1 day'", "'1 month'", "'1 month 1 day'", "'1 day -24 hours'",
	"'178000000 years'", "'-178000000 years'", "'2147483647 days'", "'2562047788:00:54.775807'", "'1 hour'", "'1 day'", "'1 week'",
	"'1 year'", "'7 days'", "'10 minutes'", "'0.5 seconds'", "'100 years'");
my @integers = ("'0'", "'1'", "'-1'", "'2'", "'7'", "'31'", "'32'", "'100'", "'1000'", "'1001'", "'2147483647'", "'-2147483648'");
my @bigints = (@integers, "'2147483648'", "'2147483649'", "'4611686018427387904'", "'2305843009213693952'", "'2305843009213693953'",
	"'-2305843009213693952'", "'9223372036854775807'", "'-9223372036854775808'", "'1000000000000'");

sub text
{
	return any(
		sub { quoted(any(@words)) }, sub { quoted(any(@words)) }, sub { quoted(any(@secrets)) }, sub { quoted(any(@ids)) },
		sub { "''" }, sub { "' '" }, sub { "repeat('x', " . any(1, 32, 33, 63, 64, 255, 256, 4096, 4097, 100000) . ')' },
		sub { "repeat('(', " . any(1, 64, 65, 5000) . ") || 'a' || repeat(')', " . any(1, 64, 65, 5000) . ')' },
		sub { "repeat(U&'\\20ac', " . any(1, 85, 86, 255, 256, 2000) . ')' }, sub { "repeat('NOT ', " . any(1, 100, 1023, 1024) . ") || 'a'" },
		sub { quoted(join ' ', map { any('a', 'a.b', 'docs.*', '*', 'AND', 'OR', 'NOT', '(', ')', '&', '|', '!', '"', ':', '-') } 1 .. 1 + rand 12) },
		sub { quoted(any('%s%n%1$s', "'; --", '<script>&"', '\\x00', 'a@b', 'A@B.C', "\x01\x02", "a\nb\r\n", '{"a":1}', '[]', '{', "\t")) },
		sub { quoted(substr(any(@secrets), 0, int rand 45)) }, sub { quoted(lc any(@secrets)) }, sub { quoted(any(@secrets) . 'x') },
		sub { quoted(join '_', map { join '', map { any('a' .. 'z', 'A' .. 'Z', 0 .. 9) } 1 .. any(2, 38) } 1 .. 2) })->();
}

sub json
{
	my ($depth) = @_;
	my $kind = rand;
	return any(qw(null true false 0 -1 1 1.5 1e30 9223372036854775808 -0.0 1e-20 ""), '"x"', '"1 day"', '"2024-01-01"', '"infinity"', '"\u20ac"', '"-1"')
	  if $depth > 3 || $kind < 0.5;
	return '[' . join(',', map { json($depth + 1) } 1 .. rand 4) . ']' if $kind < 0.65;
	my %object = map { any(qw(name user_id plan_id enabled metadata permissions roles allowed_ips expires_at credits refill_amount
		  refill_every refill_day max_requests request_period is_active key_lifetime max_keys_per_user email custom_start is_disabled
		  description http_role tokens rate requests credits request_id status limits api_id id digest nothing x-api-key authorization
		  accept), '') => json($depth + 1) } 1 .. rand 4;
	return '{' . join(',', map { qq("$_":$object{$_}) } sort keys %object) . '}';
}

sub array
{
	my ($make, $type) = @_;
	return any(
		sub { "'{}'" }, sub { "'{NULL}'" },
		sub { "array_fill($make->[0]::$type, ARRAY[" . any(1, 2, 8, 9, 100, 1000, 1001) . '])' },
		sub { "ARRAY[" . join(', ', map { "$_\::$type" } @$make[ 0 .. rand @$make ]) . ']' },
		sub { "ARRAY[" . join(', ', map { "$_\::$type" } @$make[ 0 .. rand @$make ]) . ", NULL]" },
		sub { "array_fill($make->[0]::$type, ARRAY[2, 2])" },
		sub { "array_fill($make->[0]::$type, ARRAY[3], ARRAY[-5])" })->();
}

# An SQL expression for a value of a type; composite types have fields.
sub value
{
	my ($type, $base, $fields, $plausible) = @_;
	my $kind = rand;
	return 'NULL' if $kind < 0.12;
	return length $plausible ? $plausible : 'NULL' if $kind < 0.5;
	return text() if $type =~ /text$|varchar|markup/ && $type !~ /\._/;
	return any(@bigints) if $type =~ /\.int8$/;
	return any(@integers) if $type =~ /\.int4$/;
	return any("'NaN'", "'Infinity'", "'-Infinity'", "'0'", "'-1'", "'0.5'", "'1e100'", "'-1e-100'", "'100'") if $type =~ /numeric$/;
	return any("'true'", "'false'") if $type =~ /bool$/;
	return any(@moments) if $type =~ /\.timestamptz$/;
	return any(@intervals) if $type =~ /interval"?$/;
	return any((map { quoted($_) } @ids), "'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'", 'gen_random_uuid()')
	  if $type =~ /\.uuid$/;
	return any("'::1'", "'0.0.0.0'", "'10.1.2.3'", "'10.1.2.3/8'", "'::/0'", "'255.255.255.255'", "'::ffff:10.1.2.3'") if $type =~ /\.inet$/;
	return any(sub { quoted(json(0)) }, sub { quoted(json(0)) }, sub { "(repeat('[', 1000) || repeat(']', 1000))" },
		sub { qq((SELECT json_object_agg('k' || i, i) FROM generate_series(1, 1000) i)) })->() if $type =~ /\.jsonb?$/;
	return array([ map { text() } 1 .. 1 + rand 10 ], 'pg_catalog.text') if $type =~ /\._text$/;
	return array([ map { quoted(any(@ids)) } 1 .. 1 + rand 10 ], 'pg_catalog.uuid') if $type =~ /\._uuid$/;
	return array([ map { any("'10.0.0.0/8'", "'::/0'", "'0.0.0.0/0'", "'10.1.2.3'") } 1 .. 1 + rand 10 ], 'pg_catalog.cidr') if $type =~ /\._cidr$/;
	return any("'{}'", "'{NULL}'", 'ARRAY[ROW(' . join(', ', ('NULL') x $fields) . ")::$base]") if $type =~ /\._|\."_/;
	return 'ROW(' . join(', ', ('NULL') x $fields) . ')' if $fields;
	return 'NULL';
}

my %functions;
push @{ $functions{ $_->[0] } }, $_ foreach rows(q(
	SELECT f.oid, f.schema, f.name, f.prorettype::regtype, CASE WHEN t.oid IS NULL THEN '' ELSE format('%I.%I', tn.nspname, t.typname) END,
	       CASE WHEN e.oid IS NULL THEN '' ELSE format('%I.%I', en.nspname, e.typname) END, coalesce(r.relnatts, 0),
	       coalesce(quote_literal(test.value(f.name, f.names[a.place], a.type)), ''),
	       f.is_variadic AND a.place = f.pronargs, coalesce(a.place, 0)
	  FROM test.functions f
	  LEFT JOIN LATERAL unnest(f.types) WITH ORDINALITY a(type, place) ON true
	  LEFT JOIN pg_type t ON t.oid = a.type LEFT JOIN pg_namespace tn ON tn.oid = t.typnamespace
	  LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' LEFT JOIN pg_namespace en ON en.oid = e.typnamespace
	  LEFT JOIN pg_class r ON r.oid = coalesce(nullif(t.typrelid, 0), e.typrelid) AND r.oid <> 0
	 WHERE has_function_privilege(current_user, f.oid, 'EXECUTE')
	 ORDER BY f.oid, a.place));
die 'no functions' unless %functions;

my @oids = sort keys %functions;
print "SET statement_timeout = '5s';\nSET client_min_messages = error;\n";
foreach my $n (1 .. $calls)
{
	my @arguments = @{ $functions{ $oids[ $n % @oids ] } };
	my (undef, $schema, $name, $result) = @{ $arguments[0] };
	my $list = join ', ', map {
		my ($type, $base, $fields, $plausible, $variadic) = @$_[ 4 .. 8 ];
		($variadic eq 't' ? 'VARIADIC ' : '') . '(' . value($type, $base, $fields, $plausible) . ")::$type"
	} grep { $_->[9] } @arguments;

	print any('BEGIN', 'BEGIN', 'BEGIN READ ONLY', 'BEGIN ISOLATION LEVEL SERIALIZABLE'), ";\n";
	print 'SET LOCAL request.headers = ', quoted(any('', '{}', '{"x-api-key": "' . any(@secrets) . '"}', json(0))), ";\n"
	  if $schema eq 'apikeys_http' || $name =~ /authenticate|current|http/;
	my $saved = rand() < 0.1;
	print "SAVEPOINT a;\n" if $saved;
	print $result =~ /^(void|trigger)$/ ? "SELECT $schema.$name($list);\n" : "SELECT * FROM $schema.$name($list);\n";
	print $saved ? "ROLLBACK TO a;\nCOMMIT;\n" : any(("ROLLBACK") x 12, ("COMMIT") x 2, "PREPARE TRANSACTION 't$$';\nROLLBACK PREPARED 't$$'"), ";\n";
}
