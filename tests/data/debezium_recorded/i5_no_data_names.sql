-- No snapshot, columns left out.
-- @config snapshot.mode=no_data
-- @config topic.naming.strategy=io.debezium.schema.SchemaTopicNamingStrategy
-- @config column.exclude.list=public.w.secret
-- @config tombstones.on.delete=false
-- @setup
CREATE TABLE public.w (id int PRIMARY KEY, secret text NOT NULL, v varchar(3));
INSERT INTO public.w VALUES (1, 's', 'v');
-- @stream
UPDATE public.w SET v = 'w';
UPDATE public.w SET id = 2;
DELETE FROM public.w;
