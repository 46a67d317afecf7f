-- @config skip.messages.without.change=true
-- @config column.exclude.list=public\.su\.hid
-- @setup
CREATE TABLE public.su (id int PRIMARY KEY, v text, hid text);
ALTER TABLE public.su REPLICA IDENTITY FULL;
INSERT INTO public.su VALUES (1,'a','h');
-- @stream
UPDATE public.su SET hid='i';
UPDATE public.su SET v='a';
UPDATE public.su SET v='b';
