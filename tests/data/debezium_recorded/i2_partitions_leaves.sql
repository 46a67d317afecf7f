-- A partitioned table by its leaves.
-- @config provide.transaction.metadata=true
-- @setup
CREATE TABLE public.pt (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE public.pt_old PARTITION OF public.pt FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE public.pt_new PARTITION OF public.pt FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
INSERT INTO public.pt VALUES (1, '0044-03-15 BC', 'a'), (2, '2024-01-01', NULL), (3, 'infinity', 'z');
-- @stream
UPDATE public.pt SET v = 'b' WHERE id = 1;
UPDATE public.pt SET at = '2021-01-01' WHERE id = 1;
DELETE FROM public.pt WHERE id = 2;
