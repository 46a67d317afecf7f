-- Updates that change nothing are left out; their transactions are not.
-- @config skip.messages.without.change=true
-- @config provide.transaction.metadata=true
-- @config column.exclude.list=public.w.hid
-- @setup
CREATE TABLE public.w (id int PRIMARY KEY, a text, hid int);
ALTER TABLE public.w REPLICA IDENTITY FULL;
INSERT INTO public.w VALUES (1, 'a', 1), (2, 'b', 2);
-- @stream
UPDATE public.w SET a = a WHERE id = 1;
UPDATE public.w SET hid = 9 WHERE id = 1;
BEGIN;
UPDATE public.w SET hid = 10 WHERE id = 1;
UPDATE public.w SET a = 'z' WHERE id = 2;
COMMIT;
TRUNCATE public.w;
