-- Secrets for the keys of the benchmark, in bulk: number n has the secret
-- "bench_", 24 fixed characters, n in eight digits, and the checksum. That is put
-- together from what the first and the last four digits make of it, since a
-- CRC-32 is affine: a flipped bit of the text flips the same bits of the
-- checksum, whatever the others are.

CREATE SCHEMA bench;

CREATE FUNCTION bench.crc32(bytes bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT
AS $$
DECLARE
    nibbles CONSTANT bigint[] := '{0,498536548,997073096,651767980,
        1994146192,1802195444,1303535960,1342533948,
        3988292384,4027552580,3604390888,3412177804,
        2607071920,2262029012,2685067896,3183342108}';
    crc bigint := 4294967295;
BEGIN
    FOR i IN 0 .. length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, i);
        crc := nibbles[(crc & 15) + 1] # (crc >> 4);
        crc := nibbles[(crc & 15) + 1] # (crc >> 4);
    END LOOP;
    RETURN crc # 4294967295;
END
$$;

CREATE TABLE bench.digits (
    n int PRIMARY KEY,
    digits text NOT NULL,
    high bigint NOT NULL,   -- checksum with these as the first digits
    low bigint NOT NULL     -- what they flip of it as the last ones
);
INSERT INTO bench.digits
SELECT n, digits, bench.crc32(convert_to(fixed || digits || '0000', 'UTF8')),
       bench.crc32(convert_to(fixed || '0000' || digits, 'UTF8'))
         # bench.crc32(convert_to(fixed || '00000000', 'UTF8'))
  FROM (SELECT n, lpad(n::text, 4, '0') AS digits,
               'bench_apikeysBenchmarkDataOnly' AS fixed
          FROM generate_series(0, 9999) n) d;
ANALYZE bench.digits;

CREATE FUNCTION bench.base62(number bigint, place bigint) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT substr('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz',
              (number / place % 62)::int + 1, 1)
$$;

CREATE VIEW bench.secrets AS
SELECT h.n * 10000 + l.n AS n,
       'bench_apikeysBenchmarkDataOnly' || h.digits || l.digits
         || bench.base62(h.high # l.low, 916132832)
         || bench.base62(h.high # l.low, 14776336)
         || bench.base62(h.high # l.low, 238328)
         || bench.base62(h.high # l.low, 3844)
         || bench.base62(h.high # l.low, 62)
         || bench.base62(h.high # l.low, 1) AS secret
  FROM bench.digits h, bench.digits l;
