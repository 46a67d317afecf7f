-- Bit strings of every length.
-- @setup
CREATE DOMAIN public.db AS bit(3); CREATE DOMAIN public.dvb AS bit varying(12);
CREATE TABLE public.bits (id int PRIMARY KEY, b1 bit, b8 bit(8), b9 bit(9), b64 bit(64), v varbit, v1 varbit(1), v5 bit varying(5), db public.db, dvb public.dvb, ba bit(4)[], va varbit(6)[], bd bit(4) DEFAULT B'1010', vd varbit(9) DEFAULT B'101', b1d bit NOT NULL DEFAULT B'1', nn bit(9) NOT NULL, nv varbit NOT NULL, nb bit NOT NULL);
INSERT INTO public.bits VALUES
 (1, B'0', B'00000000', B'000000000', repeat('0', 64)::bit(64), B'', B'', B'', B'000', B'', '{0000,1111}', '{1,10}', B'0000', B'', B'0', B'000000001', B'', B'0'),
 (2, B'1', B'11111111', B'111111111', repeat('1', 64)::bit(64), B'1', B'1', B'10101', B'110', B'110011001100', '{1010,NULL}', '{}', NULL, NULL, B'1', B'100000000', B'1', B'1'),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, B'010101010', B'0000000001', B'1'),
 (4, B'1', B'10000000', B'000000001', B'1000000000000000000000000000000000000000000000000000000000000001', repeat('10', 100)::varbit, B'0', B'00001', B'001', B'000000000001', '{}', NULL, B'0001', B'000000001', B'0', B'000000000', B'00', B'0');
-- @stream
INSERT INTO public.bits SELECT id + 100, b1, b8, b9, b64, v, v1, v5, db, dvb, ba, va, bd, vd, b1d, nn, nv, nb FROM public.bits ORDER BY id;
UPDATE public.bits SET id = 200 WHERE id = 102;
DELETE FROM public.bits WHERE id = 103;
