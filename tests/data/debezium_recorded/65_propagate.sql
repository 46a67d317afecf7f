-- @config datatype.propagate.source.type=.*\.(uuid|jsonb|int4|varchar)
-- json/jsonb/uuid/network/bit/enum/text search/system types.
-- @setup
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'very happy', 'comma,mood');
CREATE TABLE public.misc (id int PRIMARY KEY, j json, jb jsonb, u uuid, ip inet, net cidr, mac macaddr, mac8 macaddr8,
  bit1 bit(1), bit5 bit(5), bit16 bit(16), vb varbit(10), vbu varbit, e public.mood, tv tsvector, tq tsquery, lsn pg_lsn, x8 xid8, rc regclass);
INSERT INTO public.misc VALUES
 (1, '{"b": 1,  "a": [1, 2.50, null, true], "b": 2}', '{"b": 1, "a": [1, 2.50, null, true], "z": {"n": 1e3}}', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '192.168.1.10/24', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
  B'1', B'10110', B'1111000010101010', B'1011', B'101', 'very happy', 'a fat cat sat'::tsvector, 'fat & cat', '16/B374D848', '42', 'pg_class'),
 (2, 'null', 'null', '00000000-0000-0000-0000-000000000000', '::1', '2001:db8::/32', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', B'0', B'00000', B'0000000000000000', B'', B'', 'sad', '', '', '0/0', '0', 0),
 (3, NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL),
 (4, '"str é"', '"str é 😀"', NULL, '10.1.2.3', '10.1.2.3/32', NULL, NULL, NULL, B'00001', B'0000000000000001', B'0000000001', B'1', 'comma,mood', 'word:1A,3B other:2', NULL, NULL, NULL, NULL);
-- @stream
INSERT INTO public.misc SELECT id + 10, j,jb,u,ip,net,mac,mac8,bit1,bit5,bit16,vb,vbu,e,tv,tq,lsn,x8,rc FROM public.misc ORDER BY id;
ALTER TYPE public.mood ADD VALUE 'new mood';   -- enum grows mid-stream
INSERT INTO public.misc (id, e) VALUES (20, 'new mood');
INSERT INTO public.misc (id, e) VALUES (21, 'ok');
