-- @config value.converter.replace.null.with.default=false
-- @setup
CREATE TYPE public.lvl AS ENUM ('a','b c','d''e');
CREATE TABLE public.en (id int PRIMARY KEY, l lvl NOT NULL DEFAULT 'b c', l2 lvl DEFAULT 'a', d date NOT NULL DEFAULT '1999-12-31', ts timestamp NOT NULL DEFAULT '2000-01-01 01:02:03.456', tz timestamptz NOT NULL DEFAULT '2000-01-01 01:02:03+05', t time NOT NULL DEFAULT '23:59', n numeric NOT NULL DEFAULT 12.340, np numeric(6,2) NOT NULL DEFAULT 1, j json NOT NULL DEFAULT '{"a":1}', u uuid NOT NULL DEFAULT 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', i inet NOT NULL DEFAULT '1.2.3.4', iv interval NOT NULL DEFAULT '1 day', b bytea NOT NULL DEFAULT '\x01', bt bit(4) NOT NULL DEFAULT B'1010', f4 real NOT NULL DEFAULT 1.5, txt text NOT NULL DEFAULT 'x' || 'y', neg int NOT NULL DEFAULT -5, big bigint NOT NULL DEFAULT 9999999999, bo bool NOT NULL DEFAULT (1=1), arr int[] NOT NULL DEFAULT '{}', p point NOT NULL DEFAULT '(1,2)', m money NOT NULL DEFAULT 5);
INSERT INTO public.en(id) VALUES (1);
-- @stream
INSERT INTO public.en(id) VALUES (2);
UPDATE public.en SET l='d''e', l2=NULL WHERE id=2;
DELETE FROM public.en WHERE id=2;
-- @sync
ALTER TYPE public.lvl ADD VALUE 'new';
INSERT INTO public.en(id,l) VALUES (3,'new');
-- @sync
